//! The soname of the shared library that cargo makes and, behind the feature
//! `header`, the C header with the table of its functions. An ordinary build runs
//! nothing but the first.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}"));
    let (width, endian) = (target("POINTER_WIDTH"), target("ENDIAN"));
    if width.as_deref() != Ok("64") || endian.as_deref() != Ok("little") {
        // Messages are in the byte order of the machine, and what is in guest memory is
        // little-endian; structs of the C ABI have padding on 32-bit machines.
        println!("cargo::error=vhost_user_frontend needs a 64-bit little-endian target");
        return;
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // The number of the ABI, not of the crate.
        println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,libvhost_user_frontend.so.0");
        // It stays after dlclose: a thread that used it may end later.
        println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
    }
    #[cfg(feature = "header")]
    header();
}

/// Writes the header to the file that VUF_HEADER names, after the table of all
/// functions to the one that VUF_TABLE names.
#[cfg(feature = "header")]
fn header() {
    let files = ["VUF_MAP", "VUF_TABLE", "VUF_HEADER"].map(|name| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var(name)
    });
    let [Ok(map), Ok(table), Ok(target)] = &files else {
        return;
    };
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    // Also when somebody has deleted or edited what is written.
    for file in [map, table, target] {
        println!("cargo::rerun-if-changed={file}");
    }
    if let Err(error) = api_table::write(map, table).and_then(|()| generate(table, target)) {
        println!("cargo::error=cannot make the header: {error}");
    }
}

#[cfg(feature = "header")]
#[path = "build_api.rs"]
mod api_table;

#[cfg(feature = "header")]
fn generate(table: &str, target: &str) -> Result<(), Box<dyn std::error::Error>> {
    // In the order in which a reader wants them.
    let files = [
        "types",
        "requests",
        "error",
        "client",
        "memory",
        "dirty_log",
        "memfd",
        "postcopy",
        "vring",
        "list",
        "device",
        "device_kinds",
        "backend",
        "trace",
        "virtual_device/types",
        "virtual_device/presets",
        "virtual_device",
        "virtual_device/names",
        "virtual_device/config",
        "virtual_device/state",
        "virtual_device/settings",
        "virtual_device/sharing",
        "virtual_device/group",
        "virtual_device/rings",
        "api",
        "programs/types",
        "programs",
        "programs/process",
    ];
    let builder =
        cbindgen::Builder::new().with_config(cbindgen::Config::from_file("cbindgen.toml")?);
    let bindings = files
        .iter()
        .fold(builder, |builder, file| {
            builder.with_src(format!("src/ffi/{file}.rs"))
        })
        .with_src(table)
        .generate()?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    // What a Rust caller has to promise is said to C in other words.
    let mut safety = false;
    let mut kept: Vec<&str> = Vec::new();
    let text = String::from_utf8(text)?;
    for line in text.lines() {
        if line.trim() == "* # Safety" {
            safety = true;
            if kept.last().is_some_and(|line| line.trim() == "*") {
                kept.pop();
            }
        }
        safety &= line.trim() != "*/";
        if !safety {
            kept.push(line);
        }
    }
    Ok(std::fs::write(target, kept.join("\n") + "\n")?)
}
