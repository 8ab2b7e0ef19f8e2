//! Lists by selectors: by kubectl, at once and in pages, and deletions of what is selected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::Value;

use crate::{
    Answers,
    objects::{CONFIGMAPS, NAMESPACE, PODS, SHIRTS},
    support::{controlplane::ControlPlane, http::Api, process::eventually},
};

/// What kubectl is asked for, and how many lines that is.
const LISTS: &[(&str, usize)] = &[
    ("pods -l app=web", 25),
    ("pods -l app==web,tier", 8),
    ("pods -l app!=web", 35),
    ("pods -l app", 51),
    ("pods -l !app", 9),
    ("pods -l app,!tier", 34),
    ("pods -l tier=", 17),
    ("pods -l app_in_(web,db)", 51),
    ("pods -l app_notin_(web)", 35),
    ("pods -l example.com/number>30", 25),
    ("pods -l app=web --chunk-size=7", 25),
    ("pods -l app=web -A --chunk-size=7", 26),
    ("pods --field-selector spec.nodeName=node-4", 7),
    ("pods --field-selector spec.nodeName=", 45),
    ("pods --field-selector spec.restartPolicy!=Always", 12),
    ("pods --field-selector spec.schedulerName=default-scheduler --chunk-size=9", 60),
    ("pods --field-selector status.phase=Pending,spec.restartPolicy=Never", 12),
    ("pods --field-selector metadata.name=pod-08", 1),
    ("pods --field-selector metadata.name!=pod-08", 59),
    ("pods --field-selector metadata.namespace=team-b -A", 1),
    ("pods -l app=db --field-selector spec.restartPolicy=Never", 5),
    ("pods -l app=web --field-selector metadata.name=pod-08", 1),
    ("pods -l app=web --field-selector spec.nodeName=node-4 --chunk-size=2", 6),
    ("configmaps -l app=db", 17),
    ("configmaps -l tier --chunk-size=3", 12),
    ("configmaps -l !app --field-selector metadata.name!=map-07", 5),
    ("secrets --field-selector type=example.com/one", 1),
    ("secrets --field-selector type!=Opaque", 2),
    ("jobs -l job-name=job-1", 1),
    ("jobs -l batch.kubernetes.io/job-name", 3),
    ("jobs --field-selector status.successful=0", 3),
    ("namespaces -l kubernetes.io/metadata.name=team-b", 1),
    ("namespaces -l team", 2),
    ("namespaces --field-selector status.phase=Active,metadata.name!=default", 5),
    ("shirts.v1.pleach.example.com -l app=web --chunk-size=4", 19),
    ("shirts.v1.pleach.example.com --field-selector spec.color=blue", 12),
    ("shirts.v1.pleach.example.com --field-selector spec.color=light_blue --chunk-size=5", 12),
    ("shirts.v1.pleach.example.com --field-selector spec.color!=blue", 33),
    ("shirts.v1.pleach.example.com --field-selector spec.color=", 9),
    ("shirts.v1.pleach.example.com --field-selector spec.size=3,spec.dry=true", 3),
    ("shirts.v1.pleach.example.com --field-selector spec.fit=loose", 30),
    ("shirts.v1.pleach.example.com --field-selector spec.fit!=loose,spec.dry=false", 7),
    ("shirts.v1.pleach.example.com -l tier --field-selector spec.color!=red", 12),
    ("shirts.v2.pleach.example.com -l app=web --chunk-size=4", 19),
    ("shirts.v2.pleach.example.com --field-selector spec.color=blue,spec.fit=slim", 12),
    ("shirts.v2.pleach.example.com --field-selector metadata.name=shirt-09", 1),
];

/// A path, what is selected of it, and how many there are.
const PAGES: &[(&str, &str, usize)] = &[
    (PODS, "labelSelector=app%3Dweb", 25),
    (PODS, "labelSelector=!app", 9),
    (PODS, "fieldSelector=spec.nodeName%3Dnode-0", 8),
    (CONFIGMAPS, "labelSelector=tier,app%3Dweb", 6),
    (SHIRTS, "labelSelector=tier", 12),
    (SHIRTS, "fieldSelector=spec.color%3Dblue", 12),
    (SHIRTS, "labelSelector=app&fieldSelector=spec.fit%3Dloose", 26),
];

/// A path, and what is deleted of it; then what is there.
const DELETIONS: &[(&str, &str)] = &[
    (PODS, "labelSelector=app%3Dweb,tier"),
    (PODS, "fieldSelector=spec.restartPolicy%3DNever"),
    (CONFIGMAPS, "labelSelector=tier,app%3Dweb"),
    (SHIRTS, "labelSelector=tier"),
    (SHIRTS, "fieldSelector=spec.color%3Dred"),
];

pub(crate) async fn lists(plane: &ControlPlane, answers: &mut Answers) -> Result<()> {
    for (words, count) in LISTS {
        let words: Vec<_> = words.split(' ').map(|word| word.replace('_', " ")).collect();
        let mut arguments: Vec<&str> = vec!["get", "-n", NAMESPACE, "-o", "name"];
        arguments.extend(words.iter().map(String::as_str));
        let printed = plane.kubectl(&arguments).await?;
        let names: Vec<_> = printed.lines().map(str::to_owned).collect();
        let question = arguments.join(" ");
        ensure!(names.len() == *count, "{} for {count}: {question}: {names:?}", names.len());
        answers.insert(question, names);
    }
    Ok(())
}

pub(crate) async fn pages(plane: &ControlPlane, answers: &mut Answers) -> Result<()> {
    for (path, selector, count) in PAGES {
        for limit in [1, 4, 100] {
            let question = format!("{path}?{selector}&limit={limit}");
            let names = in_pages(plane.api, &question, limit).await?;
            ensure!(names.len() == *count, "{} for {count}: {question}: {names:?}", names.len());
            answers.insert(question, names);
        }
    }
    Ok(())
}

/// All pages but the last are full. A last one may be empty, where storage knows nothing of selectors.
async fn in_pages(api: Api, path: &str, limit: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = api.get(&format!("{path}&continue={token}")).await?;
        let found = names_of(&page)?;
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        ensure!(token.is_empty() || found.len() == limit, "a page in the middle is not full");
        ensure!(found.len() <= limit, "{} are more than {limit}", found.len());
        names.extend(found);
        if token.is_empty() {
            return Ok(names);
        }
    }
}

pub(crate) async fn deletions(plane: &ControlPlane, answers: &mut Answers) -> Result<()> {
    for (path, selector) in DELETIONS {
        let question = format!("{path}?{selector}");
        plane.api.send(Method::DELETE, &question, None).await?.success(&question)?;
        let rest = eventually("what was selected is gone", Duration::from_secs(30), async || {
            let selected = names_of(&plane.api.get(&question).await?)?;
            ensure!(selected.is_empty(), "{selected:?} are there");
            names_of(&plane.api.get(path).await?)
        })
        .await?;
        answers.insert(format!("after DELETE {question}"), rest);
    }
    for what in ["pods", "configmaps", "shirts.v1.pleach.example.com"] {
        let printed = plane.kubectl(&["delete", what, "-n", NAMESPACE, "-l", "app=db"]).await?;
        let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        lines.sort();
        answers.insert(format!("delete {what} -l app=db"), lines);
        let rest = plane.kubectl(&["get", what, "-n", NAMESPACE, "-o", "name"]).await?;
        let rest = rest.lines().map(str::to_owned).collect();
        answers.insert(format!("after delete {what} -l app=db"), rest);
    }
    Ok(())
}

fn names_of(list: &Value) -> Result<Vec<String>> {
    let name = |item: &Value| item["metadata"]["name"].as_str().map(str::to_owned);
    let items = list["items"].as_array().context("a list has items")?;
    items.iter().map(|item| name(item).context("an object has a name")).collect()
}
