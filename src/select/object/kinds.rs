//! Which fields of Kubernetes' own kinds can be selected by, and where they stand: what the strategies of API server
//! 1.36 answer, after conversion and defaults. Numbers are those of its `generated.proto` files.

use std::borrow::Cow;

/// A field that can be selected by.
#[derive(Debug)]
pub(super) struct Field {
    /// As selectors name it.
    name: &'static str,
    /// Where it may stand; the first that is not empty counts.
    pub sources: &'static [Source],
    /// What it is where nothing is there.
    pub default: &'static str,
}

/// A place in an object, in JSON and in protobuf. Of a list the first counts.
#[derive(Debug)]
pub(super) struct Source {
    pub names: &'static [&'static str],
    pub numbers: &'static [Step],
    pub form: Form,
}

/// A field's number, and whether it is a list.
#[derive(Debug)]
pub(super) enum Step {
    One(u32),
    First(u32),
}

/// What protobuf does not say of a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Text,
    Bool,
    Integer,
}

/// What is known of a field of a kind.
#[derive(Debug)]
pub(super) enum Known {
    /// Where it is.
    Field(&'static Field),
    /// The kind is known, and no API server selects it by that.
    NotSelectable,
    /// It is no kind of Kubernetes' own.
    OtherKind,
}

struct Kind {
    /// The versions in which it stands so.
    versions: &'static [&'static str],
    kind: &'static str,
    fields: &'static [Field],
}

use self::{
    Form::{Bool, Integer, Text},
    Step::{First, One},
};

const fn source(names: &'static [&'static str], numbers: &'static [Step], form: Form) -> Source {
    Source { names, numbers, form }
}

const fn field(name: &'static str, sources: &'static [Source], default: &'static str) -> Field {
    Field { name, sources, default }
}

const NAME: &[Source] = &[source(&["metadata", "name"], &[One(1), One(1)], Text)];

/// What every kind has.
const META: &[Field] = &[
    field("metadata.name", NAME, ""),
    field("metadata.namespace", &[source(&["metadata", "namespace"], &[One(1), One(3)], Text)], ""),
];

macro_rules! texts {
    ($($name:literal = [$($step:literal),+] [$($number:literal),+] $default:literal);+ $(;)?) => {
        &[$(field($name, &[source(&[$($step),+], &[$(One($number)),+], Text)], $default)),+]
    };
}

/// What was called `name` before it was called `metadata.name`.
const OLD_NAME: &[Field] = &[field("name", NAME, "")];

const REPLICAS: &[Field] = &[field(
    "status.replicas",
    &[source(&["status", "replicas"], &[One(3), One(1)], Integer)],
    "0",
)];

const KINDS: &[Kind] = &[
    Kind {
        versions: &["v1"],
        kind: "Pod",
        fields: &[
            field("spec.nodeName", &[source(&["spec", "nodeName"], &[One(2), One(10)], Text)], ""),
            field(
                "spec.restartPolicy",
                &[source(&["spec", "restartPolicy"], &[One(2), One(3)], Text)],
                "Always",
            ),
            field(
                "spec.schedulerName",
                &[source(&["spec", "schedulerName"], &[One(2), One(19)], Text)],
                "default-scheduler",
            ),
            field(
                "spec.serviceAccountName",
                &[
                    source(&["spec", "serviceAccountName"], &[One(2), One(8)], Text),
                    source(&["spec", "serviceAccount"], &[One(2), One(9)], Text),
                ],
                "",
            ),
            field(
                "spec.hostNetwork",
                &[source(&["spec", "hostNetwork"], &[One(2), One(11)], Bool)],
                "false",
            ),
            field("status.phase", &[source(&["status", "phase"], &[One(3), One(1)], Text)], ""),
            field(
                "status.podIP",
                &[
                    source(&["status", "podIP"], &[One(3), One(6)], Text),
                    source(&["status", "podIPs", "0", "ip"], &[One(3), First(12), One(1)], Text),
                ],
                "",
            ),
            field(
                "status.nominatedNodeName",
                &[source(&["status", "nominatedNodeName"], &[One(3), One(11)], Text)],
                "",
            ),
        ],
    },
    Kind {
        versions: &["v1"],
        kind: "Event",
        fields: &[
            field(
                "involvedObject.kind",
                &[source(&["involvedObject", "kind"], &[One(2), One(1)], Text)],
                "",
            ),
            field(
                "involvedObject.namespace",
                &[source(&["involvedObject", "namespace"], &[One(2), One(2)], Text)],
                "",
            ),
            field(
                "involvedObject.name",
                &[source(&["involvedObject", "name"], &[One(2), One(3)], Text)],
                "",
            ),
            field(
                "involvedObject.uid",
                &[source(&["involvedObject", "uid"], &[One(2), One(4)], Text)],
                "",
            ),
            field(
                "involvedObject.apiVersion",
                &[source(&["involvedObject", "apiVersion"], &[One(2), One(5)], Text)],
                "",
            ),
            field(
                "involvedObject.resourceVersion",
                &[source(&["involvedObject", "resourceVersion"], &[One(2), One(6)], Text)],
                "",
            ),
            field(
                "involvedObject.fieldPath",
                &[source(&["involvedObject", "fieldPath"], &[One(2), One(7)], Text)],
                "",
            ),
            field("reason", &[source(&["reason"], &[One(3)], Text)], ""),
            field("reportingComponent", &[source(&["reportingComponent"], &[One(14)], Text)], ""),
            field(
                "source",
                &[
                    source(&["source", "component"], &[One(5), One(1)], Text),
                    source(&["reportingComponent"], &[One(14)], Text),
                ],
                "",
            ),
            field("type", &[source(&["type"], &[One(9)], Text)], ""),
        ],
    },
    Kind {
        versions: &["v1"],
        kind: "Node",
        fields: &[field(
            "spec.unschedulable",
            &[source(&["spec", "unschedulable"], &[One(2), One(4)], Bool)],
            "false",
        )],
    },
    Kind { versions: &["v1"], kind: "Secret", fields: texts! { "type" = ["type"] [3] "Opaque" } },
    Kind {
        versions: &["v1"],
        kind: "Namespace",
        fields: &[
            field(
                "status.phase",
                &[source(&["status", "phase"], &[One(3), One(1)], Text)],
                "Active",
            ),
            field("name", NAME, ""),
        ],
    },
    Kind {
        versions: &["v1"],
        kind: "Service",
        fields: texts! {
            "spec.clusterIP" = ["spec", "clusterIP"] [2, 3] "";
            "spec.type" = ["spec", "type"] [2, 4] "ClusterIP";
        },
    },
    Kind { versions: &["v1"], kind: "PersistentVolume", fields: OLD_NAME },
    Kind { versions: &["v1"], kind: "PersistentVolumeClaim", fields: OLD_NAME },
    Kind { versions: &["v1"], kind: "ReplicationController", fields: REPLICAS },
    Kind { versions: &["apps/v1"], kind: "ReplicaSet", fields: REPLICAS },
    Kind {
        versions: &["batch/v1"],
        kind: "Job",
        fields: &[field(
            "status.successful",
            &[source(&["status", "succeeded"], &[One(3), One(5)], Integer)],
            "0",
        )],
    },
    Kind {
        versions: &["certificates.k8s.io/v1"],
        kind: "CertificateSigningRequest",
        fields: texts! { "spec.signerName" = ["spec", "signerName"] [2, 7] "" },
    },
    Kind {
        versions: &["certificates.k8s.io/v1beta1", "certificates.k8s.io/v1alpha1"],
        kind: "ClusterTrustBundle",
        fields: texts! { "spec.signerName" = ["spec", "signerName"] [2, 1] "" },
    },
    Kind {
        versions: &["certificates.k8s.io/v1beta1"],
        kind: "PodCertificateRequest",
        fields: texts! {
            "spec.signerName" = ["spec", "signerName"] [2, 1] "";
            "spec.podName" = ["spec", "podName"] [2, 2] "";
            "spec.nodeName" = ["spec", "nodeName"] [2, 6] "";
        },
    },
    Kind {
        versions: &["coordination.k8s.io/v1beta1", "coordination.k8s.io/v1alpha2"],
        kind: "LeaseCandidate",
        fields: texts! { "spec.leaseName" = ["spec", "leaseName"] [2, 1] "" },
    },
    Kind {
        versions: &["resource.k8s.io/v1", "resource.k8s.io/v1beta2"],
        kind: "ResourceSlice",
        fields: texts! {
            "spec.nodeName" = ["spec", "nodeName"] [2, 3] "";
            "spec.driver" = ["spec", "driver"] [2, 1] "";
        },
    },
];

/// What is known of a field of objects that say that they are of this version and kind.
pub(super) fn known(api_version: &str, kind: &str, name: &str) -> Known {
    let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
    // Kubernetes' own groups have no dot, or end so; nobody else may have such a one.
    if group.contains('.') && !group.ends_with(".k8s.io") {
        return Known::OtherKind;
    }
    let of_kind = KINDS.iter().find(|it| it.kind == kind && it.versions.contains(&api_version));
    let mut fields = META.iter().chain(of_kind.into_iter().flat_map(|it| it.fields));
    match fields.find(|field| field.name == name) {
        Some(field) => Known::Field(field),
        // Some groups of the project's own are custom resources after all.
        None if of_kind.is_none() && group.ends_with(".k8s.io") => Known::OtherKind,
        None => Known::NotSelectable,
    }
}

/// Whether an API server shows other labels than are stored: where there are none it gives these kinds those of their
/// template, and namespaces their name, whenever it reads them.
pub(super) fn has_defaults_for(
    labels: &[(Cow<'_, str>, Cow<'_, str>)],
    api_version: &str,
    kind: &str,
) -> bool {
    match (api_version, kind) {
        ("v1", "Namespace") => !labels.iter().any(|(key, _)| key == "kubernetes.io/metadata.name"),
        ("v1", "ReplicationController")
        | ("batch/v1", "Job")
        | (
            "extensions/v1beta1" | "apps/v1beta1" | "apps/v1beta2",
            "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet",
        ) => labels.is_empty(),
        _ => false,
    }
}
