//! Where the stock API server keeps the objects of a kind.
//!
//! Built-in kinds live at `/registry/<plural>/…`, apart from a few that were moved before plurals
//! were settled; custom resources live at `/registry/<group>/<plural>/…`. The table is for those
//! exceptions, for telling the kinds without namespaces apart, and for suggestions. A plural that
//! it does not know is taken as a built-in kind of a newer Kubernetes, with a doubt.

use std::{collections::HashSet, sync::LazyLock};

use super::{BASE, Doubt, Part};
use crate::model::nearest::nearest;

/// Whether a kind's objects are in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each object is in a namespace.
    Namespaced,
    /// The objects belong to the cluster.
    Cluster,
}

/// A kind, as a namespace rule names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    name: String,
    path: String,
    scope: Scope,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    BuiltIn,
    Custom,
    Unknown,
}

use Scope::{Cluster, Namespaced};

/// The groups of Kubernetes itself, and the plurals in each.
const BUILT_IN: &[(&str, Scope, &[&str])] = &[
    (
        "",
        Namespaced,
        &[
            "configmaps",
            "endpoints",
            "events",
            "limitranges",
            "persistentvolumeclaims",
            "pods",
            "podtemplates",
            "replicationcontrollers",
            "resourcequotas",
            "secrets",
            "serviceaccounts",
            "services",
        ],
    ),
    ("", Cluster, &["namespaces", "nodes", "persistentvolumes"]),
    (
        "admissionregistration.k8s.io",
        Cluster,
        &[
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
        ],
    ),
    ("apiextensions.k8s.io", Cluster, &["customresourcedefinitions"]),
    ("apiregistration.k8s.io", Cluster, &["apiservices"]),
    (
        "apps",
        Namespaced,
        &["controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"],
    ),
    ("autoscaling", Namespaced, &["horizontalpodautoscalers"]),
    ("batch", Namespaced, &["cronjobs", "jobs"]),
    ("certificates.k8s.io", Cluster, &["certificatesigningrequests", "clustertrustbundles"]),
    ("certificates.k8s.io", Namespaced, &["podcertificaterequests"]),
    ("coordination.k8s.io", Namespaced, &["leasecandidates", "leases"]),
    ("discovery.k8s.io", Namespaced, &["endpointslices"]),
    ("events.k8s.io", Namespaced, &["events"]),
    ("extensions", Namespaced, &["ingresses"]),
    ("flowcontrol.apiserver.k8s.io", Cluster, &["flowschemas", "prioritylevelconfigurations"]),
    ("internal.apiserver.k8s.io", Cluster, &["storageversions"]),
    ("networking.k8s.io", Cluster, &["ingressclasses", "ipaddresses", "servicecidrs"]),
    ("networking.k8s.io", Namespaced, &["ingresses", "networkpolicies"]),
    ("node.k8s.io", Cluster, &["runtimeclasses"]),
    ("policy", Namespaced, &["poddisruptionbudgets"]),
    ("rbac.authorization.k8s.io", Cluster, &["clusterrolebindings", "clusterroles"]),
    ("rbac.authorization.k8s.io", Namespaced, &["rolebindings", "roles"]),
    ("resource.k8s.io", Cluster, &["deviceclasses", "devicetaintrules", "resourceslices"]),
    ("resource.k8s.io", Namespaced, &["resourceclaims", "resourceclaimtemplates"]),
    ("scheduling.k8s.io", Cluster, &["priorityclasses"]),
    ("scheduling.k8s.io", Namespaced, &["podgroups", "workloads"]),
    (
        "storage.k8s.io",
        Cluster,
        &[
            "csidrivers",
            "csinodes",
            "storageclasses",
            "volumeattachments",
            "volumeattributesclasses",
        ],
    ),
    ("storage.k8s.io", Namespaced, &["csistoragecapacities"]),
    ("storagemigration.k8s.io", Cluster, &["storageversionmigrations"]),
];

/// The plurals that are not their own path.
const IRREGULAR: &[(&str, &str)] = &[
    ("apiservices", "apiregistration.k8s.io/apiservices"),
    ("customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
    ("endpoints", "services/endpoints"),
    ("ingresses", "ingress"),
    ("nodes", "minions"),
    ("replicationcontrollers", "controllers"),
    ("services", "services/specs"),
];

// === impl Kind ===

impl Kind {
    /// Reads a plural (`pods`), or a plural and its group (`shirts.stable.example.com`). A built-in
    /// kind with its group (`deployments.apps`) is the built-in kind.
    pub fn parse(name: &str) -> Self {
        let (plural, group) = match name.split_once('.') {
            Some((plural, group)) => (plural, Some(group)),
            None => (name, None),
        };
        let is_meant = |(of, _, plurals): &&(&str, Scope, &[&str])| {
            group.is_none_or(|group| group == *of) && plurals.contains(&plural)
        };
        let known = BUILT_IN.iter().find(is_meant);
        let (path, scope, family) = match (known, group) {
            (Some((_, scope, _)), _) => (path_of(plural), *scope, Family::BuiltIn),
            (None, Some(group)) => (format!("{group}/{plural}"), Namespaced, Family::Custom),
            (None, None) => (plural.to_owned(), Namespaced, Family::Unknown),
        };
        Self { name: name.to_owned(), path, scope, family }
    }

    /// The name as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the objects are, relative to [`BASE`].
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the objects are in namespaces, as far as is known.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether this is a custom resource.
    pub fn is_custom(&self) -> bool {
        self.family == Family::Custom
    }

    /// The doubt about a plural that Kubernetes does not have, or not in that group.
    pub(super) fn doubt(&self, part: Part) -> Option<Doubt> {
        match self.family {
            Family::BuiltIn => return None,
            Family::Custom => return self.doubt_of_group(part),
            Family::Unknown => {}
        }
        let known = BUILT_IN.iter().filter(|(_, scope, _)| *scope == Namespaced);
        let known = known.flat_map(|(_, _, plurals)| plurals.iter().copied());
        let advice = match nearest(&self.name, known) {
            Some(plural) => format!("did you mean `{plural}`?"),
            None => "write a custom resource as `plural.group`".to_owned(),
        };
        let reason = format!("Kubernetes has no built-in kind with the plural `{}`", self.name);
        Some(Doubt { part, reason: format!("{reason}; {advice}") })
    }

    /// The doubt about a custom resource whose group can have none.
    fn doubt_of_group(&self, part: Part) -> Option<Doubt> {
        let (plural, group) = self.name.split_once('.')?;
        let of_group = BUILT_IN.iter().filter(|(of, ..)| *of == group);
        let of_group: Vec<&str> =
            of_group.flat_map(|(.., plurals)| plurals.iter().copied()).collect();
        // The group of a custom resource has a dot.
        if of_group.is_empty() && group.contains('.') {
            return None;
        }
        let anywhere = || BUILT_IN.iter().flat_map(|(.., plurals)| plurals.iter().copied());
        let meant = anywhere().find(|it| *it == plural);
        let meant =
            meant.or_else(|| nearest(plural, of_group)).or_else(|| nearest(plural, anywhere()));
        let advice = match meant {
            Some(plural) => format!("did you mean `{plural}`?"),
            None => "write a custom resource as `plural.group`, with all of its group".to_owned(),
        };
        let reason = format!("there is no `{plural}` in the group `{group}`; {advice}");
        Some(Doubt { part, reason })
    }
}

/// Whether `group` is one of Kubernetes itself whose objects are not kept under its name.
pub(super) fn is_builtin_group(group: &str) -> bool {
    let kept_by_group = IRREGULAR.iter().any(|(_, path)| path.starts_with(&format!("{group}/")));
    !kept_by_group && BUILT_IN.iter().any(|(of, _, _)| !of.is_empty() && *of == group)
}

/// What the API server keeps below [`BASE`] that is no kind's, and in no namespace.
const OF_THE_SERVER: [&str; 4] = ["health", "masterleases", "peerserverleases", "ranges"];

/// Whether what lies at `path`, relative to [`BASE`], is in no namespace: a built-in kind of the cluster, or
/// something of the API server's own. Of custom resources that is not known.
pub(super) fn is_cluster_scoped(path: &[u8]) -> bool {
    static PATHS: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
        let cluster = BUILT_IN.iter().filter(|(_, scope, _)| *scope == Cluster);
        let paths = cluster.flat_map(|(_, _, plurals)| plurals.iter().map(|it| path_of(it)));
        let paths = paths.chain(OF_THE_SERVER.iter().map(|path| (*path).to_owned()));
        paths.map(String::into_bytes).collect()
    });
    PATHS.contains(path)
}

/// Where the objects are that `path` seems to mean, where Kubernetes never keeps any at `path`.
pub(super) fn misplaced(path: &str) -> Option<String> {
    let relative = path.strip_prefix(BASE)?;
    let plural = relative.split('/').next()?;
    let (_, actual) = IRREGULAR.iter().find(|(irregular, _)| *irregular == plural)?;
    (!actual.starts_with(plural)).then(|| format!("{BASE}{actual}"))
}

fn path_of(plural: &str) -> String {
    let irregular = IRREGULAR.iter().find(|(irregular, _)| *irregular == plural);
    irregular.map_or(plural, |(_, path)| path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_where_the_api_server_keeps_them() {
        let path = |name| Kind::parse(name).path;
        assert_eq!(path("pods"), "pods");
        assert_eq!(path("services"), "services/specs");
        assert_eq!(path("endpoints"), "services/endpoints");
        assert_eq!(path("ingresses"), "ingress");
        assert_eq!(path("ingresses.networking.k8s.io"), "ingress");
        assert_eq!(path("replicationcontrollers"), "controllers");
        assert_eq!(path("deployments.apps"), "deployments");
        assert_eq!(path("events.events.k8s.io"), "events");
        assert_eq!(path("shirts.stable.example.com"), "stable.example.com/shirts");
        assert_eq!(path("services.serving.knative.dev"), "serving.knative.dev/services");
        assert_eq!(Kind::parse("nodes").scope, Cluster);
    }

    #[test]
    fn what_is_in_no_namespace_is_known_where_the_api_server_keeps_it() {
        let cluster = [
            "minions",
            "namespaces",
            "clusterroles",
            "priorityclasses",
            "apiextensions.k8s.io/customresourcedefinitions",
            "apiregistration.k8s.io/apiservices",
            "masterleases",
            "ranges",
        ];
        assert!(cluster.iter().all(|path| is_cluster_scoped(path.as_bytes())));
        let others = ["pods", "roles", "leases", "services", "nodes", "stable.example.com/shirts"];
        assert!(!others.iter().any(|path| is_cluster_scoped(path.as_bytes())));
    }

    #[test]
    fn paths_that_hold_nothing_are_known() {
        assert_eq!(misplaced("/registry/nodes").as_deref(), Some("/registry/minions"));
        assert_eq!(
            misplaced("/registry/endpoints").as_deref(),
            Some("/registry/services/endpoints")
        );
        assert_eq!(misplaced("/registry/services"), None);
        assert_eq!(misplaced("/registry/pods"), None);
        assert_eq!(misplaced("/other/nodes"), None);
    }
}
