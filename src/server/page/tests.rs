//! Tests: what the page says of what nodes say, also of odd things.

use super::*;

const HOSTILE: &str = "<script>alert(\"'&\")</script>";

fn activity(recent: u64, failed: u64) -> Option<pb::Activity> {
    Some(pb::Activity {
        total: 1_234_567,
        failed,
        recent_s: 10.0,
        recent,
        recent_failed: failed,
        recent_p99_s: 0.0032,
    })
}

fn route(name: &str) -> pb::Route {
    pb::Route { name: name.to_owned(), kind: "sqlite".to_owned(), ..Default::default() }
}

fn away(name: &str, why: &str) -> pb::Route {
    pb::Route { trouble: why.to_owned(), trouble_s: 123.4, ..route(name) }
}

fn node(name: &str, routes: Vec<pb::Route>) -> pb::Node {
    pb::Node {
        member: Some(pb::Member { id: 7, name: name.to_owned() }),
        version: "0.2.0".to_owned(),
        revision: 1_000,
        uptime_s: 3_661.0,
        routes,
        ..Default::default()
    }
}

fn leading_to(name: &str, below: pb::Node) -> pb::Route {
    pb::Route { node: Some(below), kind: "node".to_owned(), ..route(name) }
}

fn html(node: &pb::Node, query: &str) -> String {
    Page::new(node, Asked::from_query(query)).render().expect("a page can be written")
}

fn names(node: &NodeView) -> Vec<&str> {
    node.routes.iter().map(|route| &*route.name).collect()
}

fn root(node: &pb::Node, query: &str) -> NodeView {
    NodeView::root(node, &Asked::from_query(query))
}

#[test]
fn what_is_in_trouble_comes_first_and_is_open_and_what_leads_to_it_too() {
    let failing = pb::Route { writes: activity(100, 3), ..route("failing") };
    let deep = node("eu", vec![route("fine-too"), away("deep", "it is down")]);
    let routes = vec![route("fine"), failing, leading_to("eu", deep), away("gone", "no route")];
    let root = root(&node("top", routes), "");
    assert_eq!(names(&root), ["gone", "eu", "failing", "fine"]);
    let open: Vec<bool> = root.routes.iter().map(|route| route.is_open).collect();
    assert_eq!(open, [true, true, true, false]);
    let below = root.routes[1].below.as_ref().expect("a node is there");
    assert_eq!(names(below), ["deep", "fine-too"]);
    assert_eq!((root.routes_all, root.in_trouble), (6, 3));
}

#[test]
fn every_kind_of_trouble_has_a_word_and_the_worst_is_said() {
    let looping = pb::Node { r#loop: "`a` -> `b` -> `a`".to_owned(), ..node("b", vec![]) };
    let alarmed = pb::Node { alarms: vec!["NOSPACE".to_owned()], ..node("c", vec![route("x")]) };
    let below = node("d", vec![pb::Route { is_full: true, ..route("brim") }]);
    let cases = [
        (route("a"), "ok"),
        (pb::Route { misrouted: Some(2), ..route("a") }, "misrouted keys"),
        (pb::Route { reads: activity(5, 1), misrouted: Some(2), ..route("a") }, "failing"),
        (leading_to("a", alarmed), "alarm"),
        (pb::Route { is_full: true, writes: activity(5, 1), ..route("a") }, "full"),
        (leading_to("a", looping), "loop"),
        (away("a", "why"), "away"),
        (leading_to("a", below), "trouble below"),
    ];
    for (route, said) in cases {
        let page = html(&node("top", vec![route]), "");
        assert!(page.contains(&format!("<span class=\"state\">{said}</span>")), "{said}: {page}");
    }
}

#[test]
fn what_a_node_does_not_say_is_a_dash_or_left_out_and_never_a_number() {
    let old = pb::Node {
        member: Some(pb::Member { id: 1, name: "old".to_owned() }),
        routes: vec![pb::Route { name: "pods".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let page = html(&old, "");
    for label in ["reads", "writes", "failed", "p99", "lag", "keys", "size"] {
        let cell =
            format!("<span class=\"cell {label} unknown\"><span class=\"label\">{label}</span> –");
        assert!(page.contains(&cell), "{label}: {page}");
    }
    for label in ["Alarms", "Requests", "Failed", "p99", "Watchers", "Leases", "Revision", "Memory"]
    {
        let figure = format!("<div><dt>{label}</dt><dd>–</dd></div>");
        assert!(page.contains(&figure), "{label}: {page}");
    }
    let facts = page.split("<dl class=\"facts\">").nth(1).expect("there are facts");
    let facts = facts.split("</dl>").next().unwrap_or_default();
    assert_eq!(facts.matches("<dt>").count(), 1, "only its id is known: {facts}");
    assert!(!page.contains("Waiting writes") && !page.contains("in all"), "{page}");
}

#[test]
fn what_a_node_says_is_there_in_units_of_people() {
    let pods = pb::Route {
        kind: "postgres".to_owned(),
        place: "postgres://db:5432/pods".to_owned(),
        rule: "prefix /registry/pods/".to_owned(),
        reads: activity(1_234, 0),
        writes: activity(5, 0),
        closed: 998,
        keys: Some(12_345),
        keys_age_s: 61.0,
        bytes: 1_500_000,
        bytes_in_use: 999_600,
        misrouted: Some(0),
        last_error: Some(pb::LastError { text: "it broke off".to_owned(), age_s: 7_500.0 }),
        ..route("pods")
    };
    let page = html(&node("top", vec![pods]), "");
    for said in [
        "</span> 123 /s<",
        "</span> 0.5 /s<",
        "</span> 0<",
        "</span> 3.2 ms<",
        "</span> 2<",
        "</span> 12,345<",
        "</span> 1.5 MB<",
        "postgres · prefix /registry/pods/",
        "<dd>postgres://db:5432/pods</dd>",
        "<dt>Owner</dt> <dd>top</dd>",
        "1,234,567 in all; 1,234 in the last 10 s, p99 3.2 ms",
        "12,345, counted 1 min 1 s ago",
        "1.5 MB on disk, 1.0 MB in use",
        "2 h 5 min ago</span>: it broke off",
        "<dt>Misrouted</dt> <dd>none</dd>",
        "<dd>1 h 1 min</dd>",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
}

#[test]
fn since_when_it_is_away_is_said_and_for_the_script_in_seconds() {
    let eu = pb::Route { kind: "node".to_owned(), ..away("eu", "it did not answer in time") };
    let page = html(&node("top", vec![eu]), "");
    assert!(page.contains("No answer from eu for "), "{page}");
    assert!(page.contains("data-age=\"123.4\" data-clock=\"since\">2 min 3 s</span>"), "{page}");
    assert!(page.contains("it did not answer in time"), "{page}");
}

#[test]
fn names_and_texts_are_hostile_and_stay_text() {
    let pods = pb::Route {
        rule: HOSTILE.to_owned(),
        place: HOSTILE.to_owned(),
        kind: HOSTILE.to_owned(),
        last_error: Some(pb::LastError { text: HOSTILE.to_owned(), age_s: 1.0 }),
        ..away(HOSTILE, HOSTILE)
    };
    let below = pb::Node {
        version: HOSTILE.to_owned(),
        r#loop: HOSTILE.to_owned(),
        alarms: vec![HOSTILE.to_owned()],
        giver: Some(pb::Member { id: 1, name: HOSTILE.to_owned() }),
        ..node(HOSTILE, vec![pods.clone()])
    };
    let routes = vec![pods.clone(), pods, leading_to(HOSTILE, below)];
    let page = html(&node(HOSTILE, routes), "q=%3Cscript%3E&sort=%22%3E%3Cscript%3E");
    let scripts: Vec<&str> =
        page.match_indices("<script").map(|(at, _)| &page[at..at + 21]).collect();
    assert_eq!(scripts, ["<script src=\"/page.js"], "{page}");
    let ids = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut ids: Vec<&str> = ids.collect();
    assert!(ids.iter().all(|id| !id.contains([' ', '<', '\''])), "{ids:?}");
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id is there twice");
}

#[test]
fn odd_numbers_break_nothing() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::MAX, f64::MIN_POSITIVE];
    for number in odd {
        let done = Some(pb::Activity {
            total: u64::MAX,
            failed: u64::MAX,
            recent_s: number,
            recent: u64::MAX,
            recent_failed: u64::MAX,
            recent_p99_s: number,
        });
        let pods = pb::Route {
            reads: done,
            writes: done,
            commits: done,
            closed: i64::MIN,
            keys: Some(u64::MAX),
            keys_age_s: number,
            bytes: u64::MAX,
            bytes_in_use: u64::MAX,
            misrouted: Some(u64::MAX),
            pending: u64::MAX,
            last_error: Some(pb::LastError { text: "ü".repeat(5_000), age_s: number }),
            trouble_s: number,
            ..away("pods", "x")
        };
        let fine = pb::Route { trouble: String::new(), ..pods.clone() };
        let top = pb::Node {
            revision: i64::MAX,
            closed: i64::MIN,
            compacted: -1,
            requests: done,
            watchers: u64::MAX,
            watchers_behind: u64::MAX,
            memory_bytes: u64::MAX,
            uptime_s: number,
            cpu_s: number,
            open_files: u64::MAX,
            lanes: vec![pb::Lanes { first: u32::MAX, count: u32::MAX }],
            ..node("", vec![pods, fine])
        };
        for query in ["", "sort=p99", "sort=size&show=trouble", "q=%FF%2&&=&sort", "q=ü"] {
            let page = html(&top, query);
            assert!(!page.contains("NaN") && !page.contains("inf"), "{number} {query}: {page}");
        }
    }
}

#[test]
fn a_search_finds_names_rules_places_and_nodes_and_what_leads_there() {
    let pods = pb::Route { rule: "prefix /Registry/Pods".to_owned(), ..route("busy") };
    let jobs = pb::Route { place: "mysql://db-7/jobs".to_owned(), ..route("slow") };
    let eu = leading_to("west", node("Europe", vec![pods, jobs]));
    let top = node("top", vec![eu, route("leases")]);
    let found = |query: &str| {
        let root = root(&top, query);
        let below = root.routes.first().and_then(|route| route.below.as_ref());
        let mut all: Vec<String> = names(&root).iter().map(|name| name.to_string()).collect();
        all.extend(below.iter().flat_map(|below| names(below)).map(str::to_owned));
        all.join(" ")
    };
    assert_eq!(found("q=registry"), "west busy");
    assert_eq!(found("q=DB-7"), "west slow");
    assert_eq!(found("q=europe"), "west busy slow");
    assert_eq!(found("q=west+slow"), "west slow");
    assert_eq!(found("q=leases"), "leases");
    assert_eq!(found("q=nowhere"), "");
    assert_eq!(found("q=+&sort=name"), "leases west");
    assert!(html(&top, "q=registry").contains("2 of 4 routes with “registry”"));
}

#[test]
fn those_in_trouble_alone_can_be_asked_for() {
    let eu = node("eu", vec![route("fine"), away("pods", "down")]);
    let top = node("top", vec![route("fine"), leading_to("eu", eu), away("jobs", "down")]);
    let root = root(&top, "show=trouble");
    assert_eq!(names(&root), ["jobs", "eu"]);
    assert_eq!(root.shown(), 3);
    assert_eq!(self::root(&top, "show=trouble&q=fine").shown(), 0);
}

#[test]
fn each_column_sorts_and_what_is_not_known_comes_last() {
    let slow = pb::Route { bytes: 5, reads: activity(1, 0), closed: 999, ..route("slow") };
    let large = pb::Route { bytes: 50, keys: Some(9), closed: 1, ..route("large") };
    let top = node("top", vec![route("unknown"), slow, large]);
    let sorted = |query: &str| root(&top, query).routes[0].name.clone();
    assert_eq!(sorted("sort=name"), "large");
    assert_eq!(sorted("sort=size"), "large");
    assert_eq!(sorted("sort=keys"), "large");
    assert_eq!(sorted("sort=lag"), "large");
    assert_eq!(sorted("sort=reads"), "slow");
    assert_eq!(sorted("sort=p99"), "slow");
    assert_eq!(names(&root(&top, "sort=size"))[2], "unknown");
    assert_eq!(sorted("sort=nonsense"), "unknown", "as the topology has them");
}

#[test]
fn links_keep_what_is_asked_for() {
    let asked = Asked::from_query("q=a%26b+%C3%BC&show=trouble&sort=p99&hold=1");
    assert_eq!(asked.search, "a&b ü");
    let link = asked.link(Show::Trouble, Sort::Name);
    assert_eq!(link, "/?q=a%26b%20%C3%BC&show=trouble&sort=name&hold=1");
    let mut by_name = asked.clone();
    by_name.sort = Sort::Name;
    assert_eq!(Asked::from_query(&link[2..]), by_name);
    assert_eq!(Asked::default().link(Show::All, Sort::Trouble), "/");
    let long = Asked::from_query(&format!("q={}", "ü".repeat(1_000)));
    assert!(long.search.len() <= 256);
}

#[test]
fn a_large_tree_is_listed_in_part_with_the_rest_folded() {
    let mut routes: Vec<pb::Route> = (0..500).map(|at| route(&format!("tenant-{at}"))).collect();
    for at in [7, 300, 499] {
        routes[at] = away(&format!("tenant-{at}"), "it is down");
    }
    let top = node("top", routes);
    let root = root(&top, "");
    assert_eq!(names(&root)[..3], ["tenant-7", "tenant-300", "tenant-499"]);
    assert_eq!((root.routes.len(), root.shown()), (50, 500));
    assert!(html(&top, "").contains("450 more routes, none in trouble"));
    assert!(html(&top, "sort=name").contains("450 more routes, "));
    let mut many = top.clone();
    many.routes.iter_mut().for_each(|route| route.trouble = "all is down".to_owned());
    let open = self::root(&many, "").routes.iter().filter(|route| route.is_open).count();
    assert!(open < 10, "{open} are open");
}

#[test]
fn a_node_whose_routes_are_not_known_says_so() {
    assert!(html(&node("top", vec![]), "").contains("did not say in time which routes it has"));
    let looping = pb::Node { r#loop: "`a` -> `a`".to_owned(), ..node("top", vec![]) };
    let page = html(&looping, "");
    assert!(page.contains("The routes form a loop: `a` -&#62; `a`"), "{page}");
}

/// Prints what 500 routes cost: `cargo test --release page -- --nocapture`.
#[test]
fn five_hundred_routes_are_written_in_little_time() {
    let told = |at: u64| pb::Route {
        rule: format!("prefix /tenants/{at}/"),
        place: format!("sqlite:///var/lib/pleach/tenant-{at}.db"),
        reads: activity(at, 0),
        writes: activity(at, at % 50 / 49),
        commits: activity(at, 0),
        keys: Some(at),
        bytes: at * 1_000,
        closed: 900,
        misrouted: Some(0),
        ..route(&format!("tenant-{at}"))
    };
    let top = node("top", (0..500).map(told).collect());
    let begin = std::time::Instant::now();
    let mut bytes = 0;
    for _ in 0..20 {
        bytes = html(&top, "q=tenant").len();
    }
    let said = format!("500 routes: {:?}, {bytes} bytes", begin.elapsed() / 20);
    println!("{said}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{said}");
}
