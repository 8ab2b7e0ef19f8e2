//! A described tree as a list: each node, and each of its routes, with the way to it.

use crate::proto::tree as pb;

/// A node, and how one gets there from where it was asked.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    /// The name of the first node, then the routes down to this one: `root/region/tenant`.
    pub(super) path: String,
    pub(super) node: &'a pb::Node,
}

// === impl Place ===

impl Place<'_> {
    /// The way to one of the node's routes.
    pub(super) fn of(&self, route: &pb::Route) -> String {
        format!("{}/{}", self.path, route.name)
    }
}

/// The node and all below it that answered, from the top.
pub(super) fn nodes(root: &pb::Node) -> Vec<Place<'_>> {
    let name = root.member.as_ref().map_or("", |member| member.name.as_str());
    let mut found = Vec::new();
    collect(root, name.to_owned(), &mut found);
    found
}

fn collect<'a>(node: &'a pb::Node, path: String, found: &mut Vec<Place<'a>>) {
    found.push(Place { path: path.clone(), node });
    for route in &node.routes {
        if let Some(below) = &route.node {
            collect(below, format!("{path}/{}", route.name), found);
        }
    }
}

/// How much was done a second of late; `None` where it is not known.
pub(super) fn rate(
    activity: Option<&pb::Activity>,
    count: impl Fn(&pb::Activity) -> u64,
) -> Option<f64> {
    let activity = activity.filter(|it| it.recent_s > 0.0)?;
    Some(count(activity) as f64 / activity.recent_s)
}
