//! Compiles proto/ with protox, a compiler in pure Rust, so that a build needs no `protoc`.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "etcd/rpc.proto",
        "etcd/lock.proto",
        "etcd/election.proto",
        "pleach/tree.proto",
        "pleach/records.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // `compile_fds` does not write the descriptor set that reflection serves, so it is written here.
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".") // keys and values as `Bytes`: a decoded message shares the receive buffer
        .compile_fds(descriptors)?;
    Ok(())
}
