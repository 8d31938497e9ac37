//! All scenarios, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod changes;
mod crash;
mod damage;
mod delta_imports;
mod deltas;
mod devices;
mod discovery;
mod formats;
mod gc;
mod images;
mod index;
mod inputs;
mod keys;
mod kills;
mod leases;
mod life;
mod lifetime;
mod many;
mod model;
mod oracle;
mod order;
mod outputs;
mod power;
mod processes;
mod refusals;
mod remote;
mod remote_leases;
mod remote_lock;
mod report;
mod report_page;
mod samples;
mod server;
mod sftp;
mod soak;
mod sync;

#[test]
fn every_scenario_file_is_part_of_this_binary() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let main = std::fs::read_to_string(folder.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap_or(&name);
        assert!(module == "main" || main.contains(&format!("mod {module};")), "{name} is not declared in main.rs");
    }
}
