//! What the server really holds, past the API server, which answers lists out of its cache.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, GetOptions};

use crate::{
    resource::{Resource, revision, revisions_by_name},
    support::controlplane::ControlPlane,
};

/// The files of the stores, and what the keys of each begin with. The default store comes last.
const STORES: [(&str, &str); 4] = [
    ("pods.db", "/registry/pods/team-a/"),
    ("leases.db", "/registry/leases/"),
    ("widgets.db", "/registry/pleach.example.com/widgets/"),
    ("data/pleach.db", "/registry/pods/team-b/"),
];

/// Each object of a list must be a key of the same revision, and no key must be left over: a server
/// that loses keys in a restart tells no watcher, so the API server's cache shows them for ever.
pub(crate) async fn server_holds_what_is_listed(
    plane: &ControlPlane,
    resource: Resource,
) -> Result<()> {
    let list = plane.api.get(&resource.everywhere()).await?;
    let at = i64::try_from(revision(&list)?)?;
    let mut client = Box::pin(Client::connect([plane.server.endpoint()], None)).await?;
    let options = GetOptions::new().with_prefix().with_keys_only().with_revision(at);
    let answer = client.get(resource.key_prefix, Some(options)).await?;
    let mut held = BTreeMap::new();
    for pair in answer.kvs() {
        let name = pair.key_str()?.strip_prefix(resource.key_prefix).context("a range is kept")?;
        held.insert(name.to_owned(), u64::try_from(pair.mod_revision())?);
    }
    for (name, revision) in revisions_by_name(&list)? {
        let key = held.remove(&name);
        ensure!(key == Some(revision), "{name} is listed at {revision}, its key is at {key:?}");
    }
    ensure!(held.is_empty(), "keys that are not listed: {held:?}");
    Ok(())
}

/// The topology must have been at work, not only have been read. This looks for the bytes of keys
/// in the database files, and so knows nothing of tables.
pub(crate) fn each_holds_its_own_keys(folder: &Path) -> Result<()> {
    for (file, own) in STORES {
        let mut bytes = fs::read(folder.join(file))?;
        bytes.extend(fs::read(folder.join(format!("{file}-wal"))).unwrap_or_default());
        for (_, prefix) in STORES {
            let found = bytes.windows(prefix.len()).any(|window| window == prefix.as_bytes());
            ensure!(found == (prefix == own), "{file} and keys of {prefix}: found is {found}");
        }
    }
    Ok(())
}
