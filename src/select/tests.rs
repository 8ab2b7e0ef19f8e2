//! Examples of each rule. What random selectors make of random objects is held against Kubernetes' own packages by
//! `tests/selectors`.

use serde_json::json;

use super::*;

fn labels(text: &str) -> Result<LabelSelector, Wrong> {
    LabelSelector::parse(text)
}

/// What a selector makes of labels, written `k=v,k=v`.
fn selects(selector: &str, of: &str) -> bool {
    let pairs = of.split(',').filter(|pair| !pair.is_empty());
    let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    labels(selector).unwrap_or_else(|wrong| panic!("{selector}: {wrong:?}")).matches(&pairs)
}

fn verdict(labels: &str, fields: &str, value: &[u8]) -> Verdict {
    let selector = Selector::parse(labels, fields);
    selector.expect("they can be read").expect("they select something").verdict(value)
}

fn shirt(labels: &serde_json::Value, spec: &serde_json::Value) -> Vec<u8> {
    let shirt = json!({
        "apiVersion": "stable.example.com/v1", "kind": "Shirt",
        "metadata": { "name": "example1", "namespace": "default", "labels": labels },
        "spec": spec,
    });
    shirt.to_string().into_bytes()
}

/// A field of protobuf that holds bytes.
fn bytes(number: u8, inner: &[u8]) -> Vec<u8> {
    let length = u8::try_from(inner.len()).expect("it is short");
    assert!(length < 128 && number < 16, "one byte each");
    [&[number << 3 | 2, length], inner].concat()
}

/// A pod in Kubernetes' protobuf: its name, one label, and where it runs.
fn pod(name: &str, label: (&str, &str), node: &str) -> Vec<u8> {
    let entry = [bytes(1, label.0.as_bytes()), bytes(2, label.1.as_bytes())].concat();
    let meta = [bytes(1, name.as_bytes()), bytes(3, b"default"), bytes(11, &entry)].concat();
    let spec = bytes(10, node.as_bytes());
    let pod = [bytes(1, &meta), bytes(2, &spec)].concat();
    let kind = [bytes(1, b"v1"), bytes(2, b"Pod")].concat();
    [b"k8s\0".to_vec(), bytes(1, &kind), bytes(2, &pod)].concat()
}

#[test]
fn what_has_no_such_label_is_what_is_not_so() {
    for (selector, of, is_selected) in [
        ("a", "a=1", true),
        ("a", "b=1", false),
        ("!a", "", true),
        ("!a", "b=1,c=2", true),
        ("!a", "a=", false),
        ("a=1", "a=1,b=2", true),
        ("a==1", "a=1", true),
        ("a=", "a=", true),
        ("a=", "", false),
        ("a!=1", "", true),
        ("a!=1", "a=2", true),
        ("a!=1", "a=1", false),
        ("a in (1,2)", "a=2", true),
        ("a in ()", "a=", true),
        ("a in (,x)", "a=", true),
        ("a notin (1,2)", "", true),
        ("a notin (1,2)", "a=1", false),
        ("a,a!=1", "a=2", true),
        ("a=1,!b", "a=1", true),
        ("a=1,!b", "a=1,b=", false),
        ("a>5", "a=6", true),
        ("a>5", "a=5", false),
        ("a<5", "a=-7", true),
        ("a<5", "a=x", false),
        ("a<5", "", false),
        ("in in (in)", "in=in", true),
        ("  x . y ", "", false),
    ] {
        if selector.contains(". y") {
            assert!(labels(selector).is_err(), "{selector}");
            continue;
        }
        assert_eq!(selects(selector, of), is_selected, "{selector} of {of}");
    }
}

#[test]
fn what_is_no_selector_is_refused_at_its_place() {
    for (text, at) in [
        (",a", 0),
        ("a,", 2),
        ("a b", 2),
        ("a in 1", 5),
        ("a in (1", 7),
        ("a in (1,2", 9),
        ("!a=1", 2),
        ("a>x", 2),
        ("a>1.5", 2),
        ("a=-b", 2),
        ("-a", 0),
        ("A_/b", 0),
        ("/b", 0),
        ("a/b/c", 0),
        ("a=(", 2),
        ("a = b c", 6),
        ("=1", 0),
    ] {
        let wrong = labels(text).expect_err(text);
        assert_eq!(wrong.0, at, "{text}: {}", wrong.1);
    }
    assert!(labels(&format!("{}=1", "a".repeat(64))).is_err());
    assert!(labels(&format!("{}/{}=1", "a".repeat(253), "b".repeat(63))).is_ok());
    let fields = |text| Selector::parse("", text).expect_err("it can't be read").to_string();
    assert_eq!(
        fields("metadata.name=a,spec"),
        "the field selector can't be read at byte 16: `spec` has no `=`, `==` or `!=`"
    );
    assert!(fields(r"a=b\c").contains("at byte 3"), "{}", fields(r"a=b\c"));
    assert!(fields("a=b=c").contains("at byte 3"), "{}", fields("a=b=c"));
    assert!(fields(r"a=b\").contains("at byte 3"), "{}", fields(r"a=b\"));
}

#[test]
fn a_custom_resource_is_selected_by_any_path() {
    let none = json!({});
    let blue = shirt(
        &json!({"tier": "a"}),
        &json!({"color": "blue", "size": 42, "dry": true, "tag": "a,b=c"}),
    );
    for (labels, fields, is_wanted) in [
        ("tier=a", "", true),
        ("tier=b", "", false),
        ("", "spec.color=blue", true),
        ("", "spec.color=lue", false),
        ("", "spec.color!=blu", true),
        ("", "spec.size=42", true),
        ("", "spec.dry=true", true),
        ("", "metadata.name=example1,metadata.namespace=default", true),
        ("", "metadata.name!=example1", false),
        ("", r"spec.tag=a\,b\=c", true),
        ("tier=a", "spec.color!=blue", false),
        ("tier!=a", "spec.color=blue", false),
    ] {
        let expected = Verdict::of(is_wanted);
        assert_eq!(verdict(labels, fields, &blue), expected, "{labels} {fields}");
    }
    // It may have a default.
    for fields in ["spec.missing=", "spec.missing!=", "spec.missing=a,spec.color=blue"] {
        assert_eq!(verdict("", fields, &blue), Verdict::Unknown, "{fields}");
    }
    assert_eq!(verdict("", "spec.missing=a,spec.color=red", &blue), Verdict::Unwanted);
    assert_eq!(verdict("!tier", "", &shirt(&none, &none)), Verdict::Wanted);
    assert_eq!(verdict("!tier", "", &shirt(&json!(null), &none)), Verdict::Wanted);
}

/// Too many is harmless, too few is lost.
#[test]
fn what_cannot_be_evaluated_never_hides_a_value() {
    let odd = shirt(&json!({}), &json!({"list": [1], "object": {}, "float": 1.5}));
    for fields in ["spec.list=a", "spec.object=a", "spec.float=1.5", "spec.list.0.b=c", "spec..x=a"]
    {
        assert_eq!(verdict("", fields, &odd), Verdict::Unknown, "{fields}");
    }
    let broken = shirt(&json!({"a": 1}), &json!({}));
    assert_eq!(verdict("b=2", "", &broken), Verdict::Unknown, "labels are texts");
    let twice = br#"{"apiVersion":"g.io/v1","kind":"K","spec":{"a":"x"},"spec":{"a":"y"}}"#;
    assert_eq!(verdict("", "spec.a=x", twice), Verdict::Unknown);
    for value in [
        &b""[..],
        b"text",
        b"k8s:enc:aescbc:v1:key1:\x01\x02",
        b"{\"apiVersion\":\"v1\"",
        b"k8s\0\xff\xff\xff",
        b"\xd9\xd9\xf7\xbf",
        b"1|17",
        b"[]",
    ] {
        assert_eq!(verdict("a=1", "metadata.name=x", value), Verdict::Unknown, "{value:?}");
    }
    let deep = [b"\xd9\xd9\xf7".to_vec(), vec![0x81; 100_000], vec![0x01]].concat();
    assert_eq!(verdict("a=1", "", &deep), Verdict::Unknown, "as deep as hostile");
    let deep = format!("{}{}", "{\"a\":".repeat(100_000), "1");
    assert_eq!(verdict("a=1", "", deep.as_bytes()), Verdict::Unknown);
}

#[test]
fn kinds_of_kubernetes_are_read_from_protobuf_with_their_defaults() {
    let pod = pod("web-1", ("app", "web"), "node-7");
    for (labels, fields, is_wanted) in [
        ("app=web", "spec.nodeName=node-7", true),
        ("app!=web", "", false),
        ("!app", "", false),
        ("", "spec.nodeName=node-8", false),
        ("", "spec.nodeName!=", true),
        ("", "metadata.name=web-1", true),
        ("", "metadata.namespace!=default", false),
        ("", "spec.restartPolicy=Always", true),
        ("", "spec.schedulerName!=default-scheduler", false),
        ("", "spec.hostNetwork=false", true),
        ("", "status.podIP=", true),
    ] {
        let expected = Verdict::of(is_wanted);
        assert_eq!(verdict(labels, fields, &pod), expected, "{labels} {fields}");
    }
    assert_eq!(
        verdict("", "spec.hostname=x", &pod),
        Verdict::Unknown,
        "no pod is selected by that"
    );
    let json =
        br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"spec":{"serviceAccount":"sa"},
        "status":{"podIPs":[{"ip":"10.0.0.1"},{"ip":"fd::1"}]}}"#;
    assert_eq!(
        verdict("", "status.podIP=10.0.0.1,spec.serviceAccountName=sa", json),
        Verdict::Wanted
    );
}

#[test]
fn cbor_is_read_as_json_is() {
    let mut cbor = minicbor::Encoder::new(b"\xd9\xd9\xf7".to_vec());
    let write = |cbor: &mut minicbor::Encoder<Vec<u8>>| -> Result<(), Box<dyn std::error::Error>> {
        cbor.map(4)?.bytes(b"apiVersion")?.bytes(b"g.io/v1")?.bytes(b"kind")?.str("K")?;
        cbor.bytes(b"metadata")?.map(2)?.bytes(b"name")?.bytes(b"n")?;
        cbor.bytes(b"labels")?.map(1)?.bytes(b"a")?.bytes(b"1")?;
        cbor.bytes(b"spec")?.map(3)?.bytes(b"color")?.bytes(b"blue")?;
        cbor.bytes(b"size")?.i64(-5)?.bytes(b"deep")?.array(2)?.u8(1)?.array(1)?.null()?;
        Ok(())
    };
    write(&mut cbor).expect("it is kept in memory");
    let cbor = cbor.into_writer();
    for (labels, fields, is_wanted) in [
        ("a=1", "spec.color=blue,spec.size=-5,metadata.name=n", true),
        ("a=2", "", false),
        ("!b", "spec.color!=blue", false),
    ] {
        let expected = Verdict::of(is_wanted);
        assert_eq!(verdict(labels, fields, &cbor), expected, "{labels} {fields}");
    }
    assert_eq!(verdict("", "spec.deep=1", &cbor), Verdict::Unknown);
    assert_eq!(verdict("", "spec.none=", &cbor), Verdict::Unknown);
}

#[test]
fn texts_that_select_everything_are_no_selector() {
    for (labels, fields) in [("", ""), (" ", ""), ("", ","), ("\n", ",,")] {
        assert_eq!(Selector::parse(labels, fields), Ok(None), "{labels:?} {fields:?}");
    }
    let selector =
        Selector::parse("a in (b, c)", "x!=y").expect("both can be read").expect("they select");
    assert_eq!(selector.texts(), ("a in (b, c)", "x!=y"));
}

#[test]
fn labels_that_an_api_server_adds_when_it_reads_are_not_judged() {
    let of = |version: &str, kind: &str, labels: serde_json::Value| {
        let object = json!({
            "apiVersion": version, "kind": kind,
            "metadata": { "name": "it", "labels": labels },
            "spec": { "template": { "metadata": { "labels": { "job-name": "it" } } } },
        });
        object.to_string().into_bytes()
    };
    let name = "kubernetes.io/metadata.name";
    for (version, kind, labels, expected) in [
        ("batch/v1", "Job", json!({}), Verdict::Unknown),
        ("batch/v1", "Job", json!({ "a": "b" }), Verdict::Unwanted),
        ("batch/v1", "Job", json!({ "job-name": "it" }), Verdict::Wanted),
        ("v1", "ReplicationController", json!({}), Verdict::Unknown),
        ("v1", "Namespace", json!({ "a": "b" }), Verdict::Unknown),
        ("v1", "Namespace", json!({ name: "it" }), Verdict::Unwanted),
        ("v1", "ConfigMap", json!({}), Verdict::Unwanted),
        ("apps/v1", "Deployment", json!({}), Verdict::Unwanted),
        ("apps/v1beta1", "Deployment", json!({}), Verdict::Unknown),
    ] {
        let found = verdict("job-name=it", "", &of(version, kind, labels.clone()));
        assert_eq!(found, expected, "{version} {kind} {labels}");
    }
    let envelope = [bytes(1, b"batch/v1"), bytes(2, b"Job")].concat();
    let job = bytes(1, &bytes(1, b"it"));
    let job = [b"k8s\0".to_vec(), bytes(1, &envelope), bytes(2, &job)].concat();
    assert_eq!(verdict("job-name=it", "", &job), Verdict::Unknown);
}

#[test]
fn what_is_read_of_an_attribute_does_not_depend_on_what_is_read_with_it() {
    let of = |part, name: &str| Attribute { part, name: name.to_owned() };
    let attributes = [
        of(Part::Labels, "app"),
        of(Part::Fields, "spec.node"),
        of(Part::Labels, "tier"),
        of(Part::Fields, "metadata.name"),
        of(Part::Fields, "metadata.labels.app"),
    ];
    let values = [
        shirt(&json!({ "app": "a" }), &json!({ "node": "n" })),
        shirt(&json!({ "app": 5 }), &json!({ "node": "n" })),
        shirt(&json!(7), &json!({ "node": [] })),
        shirt(&json!({}), &json!("none")),
        b"no object".to_vec(),
        pod("web", ("app", "a"), "n"),
    ];
    for value in &values {
        let together = Attributes::new(attributes.to_vec()).read(value);
        for (attribute, reading) in attributes.iter().zip(&together) {
            let alone = Attributes::new(vec![attribute.clone()]).read(value);
            assert_eq!(alone.first(), Some(reading), "{attribute} of {value:?}");
        }
    }
    // The node is known although its labels are none.
    let of_node = Attributes::new(attributes.to_vec()).read(&values[1])[1].clone();
    assert_eq!(of_node, Reading::Value("n".into()));
}
