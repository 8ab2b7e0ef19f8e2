//! The kinds of objects the story writes itself, small ones of each.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub(crate) const TEAM_A: &str = "team-a";
pub(crate) const TEAM_B: &str = "team-b";

/// A kind of object, and where the API serves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    group_path: &'static str,
    api_version: &'static str,
    kind: &'static str,
    pub(crate) plural: &'static str,
    /// What the keys of these objects begin with in the store.
    pub(crate) key_prefix: &'static str,
}

pub(crate) const CONFIGMAPS: Resource = Resource {
    group_path: "/api/v1",
    api_version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    key_prefix: "/registry/configmaps/",
};
pub(crate) const PODS: Resource = Resource {
    group_path: "/api/v1",
    api_version: "v1",
    kind: "Pod",
    plural: "pods",
    key_prefix: "/registry/pods/",
};
pub(crate) const EVENTS: Resource = Resource {
    group_path: "/api/v1",
    api_version: "v1",
    kind: "Event",
    plural: "events",
    key_prefix: "/registry/events/",
};
pub(crate) const LEASES: Resource = Resource {
    group_path: "/apis/coordination.k8s.io/v1",
    api_version: "coordination.k8s.io/v1",
    kind: "Lease",
    plural: "leases",
    key_prefix: "/registry/leases/",
};
pub(crate) const DEPLOYMENTS: Resource = Resource {
    group_path: "/apis/apps/v1",
    api_version: "apps/v1",
    kind: "Deployment",
    plural: "deployments",
    key_prefix: "/registry/deployments/",
};
pub(crate) const REPLICASETS: Resource = Resource {
    group_path: "/apis/apps/v1",
    api_version: "apps/v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    key_prefix: "/registry/replicasets/",
};
pub(crate) const WIDGETS: Resource = Resource {
    group_path: "/apis/pleach.example.com/v1",
    api_version: "pleach.example.com/v1",
    kind: "Widget",
    plural: "widgets",
    key_prefix: "/registry/pleach.example.com/widgets/",
};

// === impl Resource ===

impl Resource {
    /// The list of all namespaces.
    pub(crate) fn everywhere(&self) -> String {
        format!("{}/{}", self.group_path, self.plural)
    }

    pub(crate) fn within(&self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.group_path, self.plural)
    }

    pub(crate) fn object(&self, name: &str) -> Value {
        let mut object = json!({
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": { "name": name },
        });
        match self.kind {
            "Pod" => {
                object["spec"] =
                    json!({ "containers": [{ "name": "main", "image": "example.com/app:1" }] });
            }
            "Lease" => object["spec"] = json!({ "holderIdentity": name }),
            "Widget" => object["spec"] = json!({ "size": 1 }),
            "ConfigMap" => object["data"] = json!({ "key": "value" }),
            _ => {}
        }
        object
    }
}

/// `namespace/name`, which names an object among all of its kind.
pub(crate) fn full_name(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    })
}

/// The revision of an object, or the one as of which a list was read.
pub(crate) fn revision(of: &Value) -> Result<u64> {
    let text = of["metadata"]["resourceVersion"].as_str().context("there is a resourceVersion")?;
    text.parse().with_context(|| format!("resourceVersion {text:?} is a number"))
}

/// The objects of a list with the revision of each.
pub(crate) fn revisions_by_name(list: &Value) -> Result<BTreeMap<String, u64>> {
    items(list)?.iter().map(|item| Ok((full_name(item)?, revision(item)?))).collect()
}

pub(crate) fn items(list: &Value) -> Result<&Vec<Value>> {
    list["items"].as_array().context("a list has items")
}
