//! Compiles proto/ with protox, a compiler in pure Rust, so that a build needs no `protoc`.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

/// Messages that hold others of their own kind, and the fields in which they do.
const NESTED: [(&str, &str); 2] = [("RequestOp", "request_txn"), ("ResponseOp", "response_txn")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "etcd/rpc.proto",
        "etcd/lock.proto",
        "etcd/election.proto",
        "grpc/health.proto",
        "pleach/tree.proto",
        "pleach/records.proto",
    ];
    let mut descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // `compile_fds` does not write the descriptor set that reflection serves, so it is written here.
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&descriptors))?;
    leave_nested_unread(&mut descriptors);
    tonic_prost_build::configure()
        .bytes(".") // keys and values as `Bytes`: a decoded message shares the receive buffer
        .compile_fds(descriptors)?;
    Ok(())
}

/// Every method as Rust has it: where it is asked for, its names, and which sides of it are streams, in the words of
/// gRPC's metrics.
fn methods(descriptors: &FileDescriptorSet) -> String {
    let mut text = "&[\n".to_owned();
    for file in &descriptors.file {
        for service in &file.service {
            let service_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let name = method.name();
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "unary",
                    (true, false) => "client_stream",
                    (false, true) => "server_stream",
                    (true, true) => "bidi_stream",
                };
                text += &format!(
                    "Method {{ path: \"/{service_name}/{name}\", service: \"{service_name}\", name: \"{name}\", \
                     kind: \"{kind}\" }},\n"
                );
            }
        }
    }
    text + "]"
}

/// Makes bytes of messages that hold their own kind: each is read when it is looked at, by who counts how
/// deep it is. prost reads all at once, to a depth that it sets and that is less than etcd takes, or to any
/// depth at all, until the stack ends. On the wire both are the same.
fn leave_nested_unread(descriptors: &mut FileDescriptorSet) {
    let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
    for message in messages {
        let nested = NESTED.iter().find(|(name, _)| message.name() == *name);
        let Some((_, name)) = nested else { continue };
        for field in message.field.iter_mut().filter(|field| field.name() == *name) {
            field.set_type(Type::Bytes);
            field.type_name = None;
        }
    }
}
