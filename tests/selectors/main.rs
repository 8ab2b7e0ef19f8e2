//! Selectors held against Kubernetes' own packages: random selectors on random objects, in every encoding in which an
//! API server stores them. What Kubernetes refuses is refused; what it selects is wanted, what it does not is not.

#[path = "../support/mod.rs"]
mod support;

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use pleach::{
    clock::Entropy,
    select::{Selector, Verdict},
};
use serde_json::{Value, json};

use support::{peers::peer, rng::Rng};

/// Random objects, and the selectors that each is asked about.
const OBJECTS: usize = 1_000;
const SELECTORS: usize = 100;

/// The paths by which the custom resources can be selected, as their definition has them.
const SELECTABLE: [&str; 4] = [".spec.color", ".spec.size", ".spec.dry", ".status.deep.er"];

/// A kind: its version and name, its fields that can be selected by, and others that are sometimes set.
struct Kind {
    version: &'static str,
    name: &'static str,
    fields: &'static [&'static str],
    values: &'static [&'static str],
}

const META: [&str; 2] = ["metadata.name", "metadata.namespace"];

const KINDS: &[Kind] = &[
    Kind {
        version: "v1",
        name: "Pod",
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        values: &[
            "node-1",
            "Always",
            "Never",
            "default-scheduler",
            "Running",
            "10.0.0.1",
            "true",
            "false",
        ],
    },
    Kind {
        version: "v1",
        name: "Event",
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        values: &["Pod", "web", "kubelet", "Normal", "v1"],
    },
    Kind {
        version: "v1",
        name: "Node",
        fields: &["spec.unschedulable"],
        values: &["true", "false"],
    },
    Kind {
        version: "v1",
        name: "Secret",
        fields: &["type"],
        values: &["Opaque", "kubernetes.io/tls"],
    },
    Kind {
        version: "v1",
        name: "Namespace",
        fields: &["status.phase", "name"],
        values: &["Active", "Terminating", "n-1"],
    },
    Kind {
        version: "v1",
        name: "Service",
        fields: &["spec.clusterIP", "spec.type"],
        values: &["ClusterIP", "NodePort", "10.0.0.1", "None"],
    },
    Kind { version: "v1", name: "PersistentVolumeClaim", fields: &["name"], values: &["n-1"] },
    Kind {
        version: "v1",
        name: "ReplicationController",
        fields: &["status.replicas"],
        values: &["0", "3"],
    },
    Kind {
        version: "apps/v1",
        name: "ReplicaSet",
        fields: &["status.replicas"],
        values: &["0", "3"],
    },
    Kind { version: "batch/v1", name: "Job", fields: &["status.successful"], values: &["0", "3"] },
    Kind {
        version: "certificates.k8s.io/v1",
        name: "CertificateSigningRequest",
        fields: &["spec.signerName"],
        values: &["example.com/signer", "kubernetes.io/legacy-unknown"],
    },
    Kind {
        version: "stable.example.com/v1",
        name: "Shirt",
        fields: &["spec.color", "spec.size", "spec.dry", "status.deep.er"],
        values: &["blue", "green", "42", "-7", "true", "a,b", "a=b", "\\", "äöü"],
    },
];

const KEYS: [&str; 8] =
    ["a", "b", "tier", "app.kubernetes.io/name", "x-y_z.1", "in", "notin", "example.com/in"];
const LABELS: [&str; 9] = ["", "a", "b", "1", "7", "-3", "in", "notin", "v1.2_x"];

/// Sets a value at a path of names.
fn set(object: &mut Value, path: &[&str], value: Value) {
    match path.split_first() {
        Some((name, [])) => object[*name] = value,
        Some((name, rest)) => {
            if !object[*name].is_object() {
                object[*name] = json!({});
            }
            set(&mut object[*name], rest, value);
        }
        None => {}
    }
}

fn object(rng: &mut Rng, kind: &Kind) -> Value {
    let mut object = json!({
        "apiVersion": kind.version, "kind": kind.name,
        "metadata": { "name": rng.pick(&["n-1", "n-10", "web"]), "uid": "u" },
    });
    if !["Node", "Namespace", "CertificateSigningRequest"].contains(&kind.name) {
        object["metadata"]["namespace"] = json!(rng.pick(&["default", "kube-system"]));
    }
    for key in KEYS {
        if rng.chance(30) {
            object["metadata"]["labels"][key] = json!(rng.pick(&LABELS));
        }
    }
    for field in kind.fields {
        if rng.chance(60) {
            let value = rng.pick(kind.values);
            let (path, value): (Vec<&str>, Value) = match *field {
                "spec.unschedulable" | "spec.hostNetwork" | "spec.dry" => {
                    (field.split('.').collect(), json!(rng.chance(50)))
                }
                "status.replicas" => (vec!["status", "replicas"], json!(rng.between(0, 4))),
                "status.successful" => (vec!["status", "succeeded"], json!(rng.between(0, 4))),
                "spec.size" if rng.chance(80) => (vec!["spec", "size"], json!(rng.between(-9, 99))),
                "source" => (vec!["source", "component"], json!(value)),
                "spec.serviceAccountName" if rng.chance(40) => {
                    (vec!["spec", "serviceAccount"], json!(value))
                }
                "status.podIP" if rng.chance(50) => {
                    (vec!["status", "podIPs"], json!([{ "ip": value }, { "ip": "fd00::1" }]))
                }
                "name" => continue,
                _ => (field.split('.').collect(), json!(value)),
            };
            set(&mut object, &path, value);
        }
    }
    object
}

fn label_selector(rng: &mut Rng) -> String {
    let mut text = String::new();
    for at in 0..rng.below(4) {
        if at > 0 {
            text += rng.pick(&[",", " , "]);
        }
        let (key, value) = (rng.pick(&KEYS), rng.pick(&LABELS));
        let values: Vec<&str> = (0..rng.below(4)).map(|_| rng.pick(&LABELS)).collect();
        let values = values.join(rng.pick(&[",", ", "]));
        text += &match rng.below(12) {
            0 => key.to_owned(),
            1 => format!("!{key}"),
            2 => format!("{key}={value}"),
            3 => format!("{key}=={value}"),
            4 => format!("{key} != {value}"),
            5 => format!("{key} in ({values})"),
            6 => format!("{key} notin ({values})"),
            7 => format!("{key}>{value}"),
            8 => format!("{key} < {value}"),
            9 => format!("{key}in({values})"),
            10 => format!("! {key}"),
            _ => format!("{key} = {value}"),
        };
    }
    garbled(rng, text)
}

fn field_selector(rng: &mut Rng, kind: &Kind) -> String {
    let mut terms = Vec::new();
    for _ in 0..rng.below(3) {
        let of_kind = kind.fields.iter().chain(&META);
        let fields: Vec<&str> = of_kind.copied().collect();
        let value = match rng.below(4) {
            0 => String::new(),
            1 => rng.pick(&["n-1", "default", "3", "0"]).to_owned(),
            _ => {
                rng.pick(kind.values).replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
            }
        };
        terms.push(format!("{}{}{value}", rng.pick(&fields), rng.pick(&["=", "==", "!="])));
    }
    let text = terms.join(",");
    garbled(rng, text)
}

/// The text, now and then with a sign more or less.
fn garbled(rng: &mut Rng, mut text: String) -> String {
    if rng.chance(15) && !text.is_empty() {
        let letters: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = rng.pick(&letters);
        if rng.chance(50) {
            text.insert_str(
                at,
                rng.pick(&["!", "=", ",", "(", ")", " ", ">", "\\", "/", "-", "\0", "\t", "é"]),
            );
        } else {
            text.remove(at);
        }
    }
    text
}

/// Asks Kubernetes: a line for each question.
fn answers(questions: &[Value]) -> Result<Vec<Value>> {
    let mut oracle = Command::new(peer("selectors")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the oracle does not start")?;
    let mut input = oracle.stdin.take().context("it has an input")?;
    let lines: String = questions.iter().map(|question| format!("{question}\n")).collect();
    // At once with what it answers: neither fits into a pipe.
    let asking = thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = oracle.wait_with_output()?;
    ensure!(output.status.success(), "the oracle failed; it says why above");
    asking.join().map_err(|_| anyhow::anyhow!("asking panicked"))??;
    let answers = String::from_utf8(output.stdout)?;
    answers.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Bytes, as Go writes them in JSON.
fn bytes(base64: &str) -> Result<Vec<u8>> {
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0_u32, 0);
    for letter in base64.bytes().filter(|letter| *letter != b'=') {
        held = held << 6 | u32::from(digit(letter).context("base64")?);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Ok(bytes)
}

#[test]
fn random_selectors_on_random_objects_are_what_they_are_to_kubernetes() -> Result<()> {
    let seed = match env::var("PLEACH_SEED") {
        Ok(seed) => seed.parse().context("PLEACH_SEED is no number")?,
        Err(_) => Entropy::system().bits() >> 1,
    };
    println!("PLEACH_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut questions = Vec::new();
    for at in 0..OBJECTS {
        let kind = &KINDS[at % KINDS.len()];
        let selectors = (0..SELECTORS).map(|_| {
            let (labels, fields) = match rng.below(3) {
                0 => (label_selector(&mut rng), String::new()),
                1 => (String::new(), field_selector(&mut rng, kind)),
                _ => (label_selector(&mut rng), field_selector(&mut rng, kind)),
            };
            json!({ "labels": labels, "fields": fields })
        });
        let selectors: Vec<Value> = selectors.collect();
        let object = object(&mut rng, kind);
        questions
            .push(json!({ "object": object, "selectable": SELECTABLE, "selectors": selectors }));
    }
    let answers = answers(&questions)?;
    ensure!(answers.len() == questions.len(), "not all questions were answered");
    let (mut refused, mut selected, mut others) = (0, 0, 0);
    for (question, answer) in questions.iter().zip(&answers) {
        let encodings = answer["encodings"].as_array().context("encodings")?;
        ensure!(encodings.len() == 2, "each object has two");
        let selectors = question["selectors"].as_array().context("selectors")?;
        let verdicts = answer["verdicts"].as_array().context("verdicts")?;
        for (selector, verdict) in selectors.iter().zip(verdicts) {
            let text = |name: &str| selector[name].as_str().unwrap_or_default();
            let parsed = Selector::parse(text("labels"), text("fields"));
            let is_read = verdict["is_read"] == json!(true);
            ensure!(
                parsed.is_ok() == is_read,
                "{selector}: Kubernetes reads it: {is_read}; {parsed:?}"
            );
            let Ok(parsed) = parsed else {
                refused += 1;
                continue;
            };
            let is_selected = verdict["is_selected"] == json!(true);
            match is_selected {
                true => selected += 1,
                false => others += 1,
            }
            for encoding in encodings {
                let value = bytes(encoding.as_str().context("bytes")?)?;
                let found = parsed.as_ref().map_or(Verdict::Wanted, |it| it.verdict(&value));
                // A path that was garbled is no field: what is not known is never left out.
                let is_right = match found {
                    Verdict::Wanted => is_selected,
                    Verdict::Unwanted => !is_selected,
                    Verdict::Unknown => {
                        let has_more =
                            !text("labels").is_empty() && gets_labels(&question["object"]);
                        has_more || !known(text("fields"), &question["object"])
                    }
                };
                ensure!(
                    is_right,
                    "{selector} of {}: {found:?}, Kubernetes: {is_selected}",
                    question["object"]
                );
            }
        }
    }
    println!("{selected} selected, {others} not, {refused} refused");
    ensure!(selected > 10_000 && others > 10_000 && refused > 1_000, "the draw is lopsided");
    Ok(())
}

/// Whether an API server gives an object labels, as often as it reads it.
fn gets_labels(object: &Value) -> bool {
    let labels = object["metadata"]["labels"].as_object();
    match object["kind"].as_str() {
        Some("Namespace") => {
            labels.is_none_or(|it| !it.contains_key("kubernetes.io/metadata.name"))
        }
        Some("Job" | "ReplicationController") => labels.is_none_or(serde_json::Map::is_empty),
        _ => false,
    }
}

/// Whether all fields of a selector are those of the kind of an object.
fn known(fields: &str, object: &Value) -> bool {
    let kind = KINDS.iter().find(|kind| object["kind"] == json!(kind.name));
    let of_kind: Vec<&str> =
        kind.into_iter().flat_map(|kind| kind.fields).chain(&META).copied().collect();
    let terms = fields.split(',').filter(|term| !term.is_empty());
    let names = terms.map(|term| match term.find('=') {
        Some(end) => term[..end].strip_suffix('!').unwrap_or(&term[..end]),
        None => term,
    });
    // What a custom resource does not have may have a default.
    let is_there = |name: &str| {
        let path = format!("/{}", name.replace('.', "/"));
        object["kind"] != json!("Shirt") || object.pointer(&path).is_some()
    };
    names.into_iter().all(|name| of_kind.contains(&name) && is_there(name))
}
