//! Routes as a topology file has them.

/// A path whose keys go to an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    name: String,
    path: String,
    endpoint: String,
    /// What else the file says of it, indented as it has it.
    more: String,
}

// === impl Route ===

impl Route {
    pub(crate) fn new(name: &str, path: &str, endpoint: impl Into<String>) -> Self {
        let (name, path) = (name.to_owned(), path.to_owned());
        Self { name, path, endpoint: endpoint.into(), more: String::new() }
    }

    pub(crate) fn with_lanes(mut self, count: u16) -> Self {
        self.more += &format!("  lanes: {count}\n");
        self
    }

    /// Files by which the connection is protected, each as `key: path`.
    pub(crate) fn with_tls(mut self, files: &[(&str, String)]) -> Self {
        self.more += "  backendTLS:\n";
        for (key, path) in files {
            self.more += &format!("    {key}: {path}\n");
        }
        self
    }
}

/// The topology file that has these routes.
pub(crate) fn topology(routes: &[Route]) -> String {
    let mut text = String::from("backends:\n");
    for Route { name, path, endpoint, more } in routes {
        text += &format!("- name: {name}\n  endpoint: {endpoint}\n");
        text += &format!("  prefix:\n    prefix: {path}\n{more}");
    }
    text
}
