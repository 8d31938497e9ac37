use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStoreExt;
use repo_core::entropy::Entropy;
use repo_core::id::{PackId, SnapshotId};
use repo_core::keys::slot::Unlock;
use repo_core::lease::Lease;
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::store::remote::RemoteOptions;
use repo_tests::memory_store::MemoryStore;
use zerocopy::IntoBytes;

use super::*;

/// A namespace of its own.
struct World {
    folder: tempfile::TempDir,
    /// The store that it is in, if it is not in the folder.
    objects: Option<MemoryStore>,
    namespace: Namespace,
}

impl World {
    fn new(quota_mib: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let namespace = open(folder.path(), quota_mib);
        Self { folder, objects: None, namespace }
    }

    /// The same in a bucket.
    fn in_bucket(quota_mib: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = MemoryStore::default();
        let namespace = open_bucket(&objects, folder.path(), quota_mib);
        Self { folder, objects: Some(objects), namespace }
    }

    fn each(quota_mib: Option<u64>) -> [Self; 2] {
        [Self::new(quota_mib), Self::in_bucket(quota_mib)]
    }

    /// As after a restart.
    fn again(&self, quota_mib: Option<u64>) -> Namespace {
        match &self.objects {
            Some(objects) => open_bucket(objects, self.folder.path(), quota_mib),
            None => open(self.folder.path(), quota_mib),
        }
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<Stored, Refusal> {
        self.put_as("backup", name, bytes)
    }

    fn put_as(&self, token: &str, name: ObjectName, bytes: &[u8]) -> Result<Stored, Refusal> {
        // As the API does.
        if !matches!(name, ObjectName::Config | ObjectName::Renewal(_)) && self.namespace.existed(name, token)? {
            return Ok(Stored::Existed);
        }
        let mut incoming = self.namespace.begin(name, None)?;
        incoming.append(bytes)?;
        incoming.finish(token)
    }

    /// What others put into the store.
    fn put_beside(&self, path: &str, bytes: &'static [u8]) {
        match &self.objects {
            Some(objects) => drop(futures::executor::block_on(objects.put(&path.into(), bytes.into())).unwrap()),
            None => {
                let path = self.folder.path().join("r").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
        }
    }

    fn path(&self, name: ObjectName) -> PathBuf {
        self.folder.path().join("r").join(name.path())
    }

    fn bytes(&self, name: ObjectName, part: &Part) -> Option<Vec<u8>> {
        let mut content = self.namespace.read(name, part).unwrap().1?;
        let mut bytes = Vec::new();
        while let Some(piece) = content.next_piece().unwrap() {
            bytes.extend_from_slice(&piece);
        }
        Some(bytes)
    }
}

fn open(folder: &Path, quota_mib: Option<u64>) -> Namespace {
    let config = NamespaceConfig { path: Some(folder.join("r")), quota_mib, ..NamespaceConfig::default() };
    Namespace::open("office", &config, folder).unwrap()
}

fn open_bucket(objects: &MemoryStore, folder: &Path, quota_mib: Option<u64>) -> Namespace {
    let config = NamespaceConfig { quota_mib, ..NamespaceConfig::default() };
    let objects = Arc::new(objects.clone());
    let store = Store::open_remote(objects, "memory".to_owned(), RemoteOptions::default()).unwrap();
    Namespace::on("office", store, Place::Bucket(Bucket::new(folder)), &config, folder).unwrap()
}

/// An object of a kind that a header and some bytes make.
fn object(kind: ObjectKind, bytes: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut object = ObjectHeader::new(kind).as_bytes().to_vec();
    object.extend_from_slice(bytes);
    let hash = *blake3::hash(&object).as_bytes();
    (object, hash)
}

fn pack(bytes: &[u8]) -> (Vec<u8>, ObjectName) {
    let (object, hash) = object(ObjectKind::Pack, bytes);
    (object, ObjectName::Pack(PackId(hash)))
}

fn lease(bytes: &[u8]) -> (Vec<u8>, LeaseId) {
    let (object, hash) = object(ObjectKind::Lease, bytes);
    (object, LeaseId(hash))
}

#[test]
fn an_object_appears_when_it_is_whole_and_is_what_its_name_says_and_stays_as_it_is() {
    for world in World::each(None) {
        let (bytes, name) = pack(b"content");
        let mut half = world.namespace.begin(name, Some(bytes.len() as u64)).unwrap();
        half.append(&bytes[..9]).unwrap();
        assert!(!world.namespace.has(name).unwrap());
        drop(half);
        for wrong in [&bytes[..bytes.len() - 1], b"", b"short", &[&bytes[..], b"x"].concat()] {
            assert_eq!(world.put(name, wrong).unwrap_err().status.as_u16(), 400);
        }
        let (other_kind, _) = object(ObjectKind::Snapshot, b"content");
        let its_name = ObjectName::Pack(PackId(*blake3::hash(&other_kind).as_bytes()));
        assert_eq!(world.put(its_name, &other_kind).unwrap_err().status.as_u16(), 400);
        assert_eq!(world.namespace.list("packs", "", 10).unwrap().0, []);
        assert_eq!(world.namespace.read(name, &Part::Whole).err().unwrap().status.as_u16(), 404);
        assert_eq!(world.put(name, &bytes).unwrap(), Stored::New);
        assert_eq!(world.put(name, &bytes).unwrap(), Stored::Existed);
        let found = world.namespace.find(name).unwrap();
        assert_eq!(found.bytes, bytes.len() as u64);
        assert_eq!(world.namespace.read(name, &Part::Last(5)).unwrap().0, found);
        assert_eq!(world.bytes(name, &Part::Whole).unwrap(), bytes);
        assert_eq!(world.bytes(name, &Part::Range(3..9)).unwrap(), bytes[3..9]);
        assert_eq!(world.bytes(name, &Part::Last(7)).unwrap(), b"content");
        assert_eq!(world.bytes(name, &Part::From(99)), None);
        assert_eq!(world.namespace.verify(name, |_, _| ()).unwrap(), Verified::Sound);
        let (_, missing) = pack(b"missing");
        assert_eq!(world.namespace.have(&[missing, name, missing]).unwrap(), [name]);
    }
}

#[test]
fn listings_come_in_pages_that_miss_nothing_and_name_nothing_else() {
    for world in World::each(None) {
        let (bytes, id) = lease(b"lease");
        world.put(ObjectName::Lease(id), &bytes).unwrap();
        let mut names = [Vec::new(), Vec::new()];
        for number in 0..40_u8 {
            let (bytes, name) = pack(&[number]);
            world.put(name, &bytes).unwrap();
            names[0].push(name.path());
            let (kind, folder) = match number % 3 {
                0 => (ObjectKind::Snapshot, "snapshots/".to_owned()),
                1 => (ObjectKind::Annotation, "snapshots/annotations/".to_owned()),
                _ => (ObjectKind::Tombstone, format!("snapshots/tombstones/{number:016x}-00000000-")),
            };
            let (bytes, _) = object(kind, &[number]);
            let name = ObjectName::parse(&format!("{folder}{}", blake3::hash(&bytes))).unwrap();
            world.put(name, &bytes).unwrap();
            names[1].push(name.path());
        }
        names.iter_mut().for_each(|names| names.sort());
        for stray in ["packs/stray", &format!("{}/stray", &names[0][0][..8]), "snapshots/strays/x", "packsx/y"] {
            world.put_beside(stray, b"x");
        }
        for (folder, names) in ["packs", "snapshots"].into_iter().zip(&names) {
            for limit in [1, 7, 39, 40, 41] {
                let (mut listed, mut after) = (Vec::new(), String::new());
                loop {
                    let (page, more) = world.namespace.list(folder, &after, limit).unwrap();
                    assert!(page.len() <= limit);
                    listed.extend(page.iter().map(|found| found.name.path()));
                    match listed.last() {
                        Some(last) if more => after.clone_from(last),
                        _ => break,
                    }
                }
                assert_eq!(&listed, names, "by {limit}");
            }
            // What clients say need not be a name.
            for after in ["a", "packs", "packs/", "//", "packs/zz", "snapshots/../x", "\u{1F300}", "packs/ab c%"] {
                let listed = world.namespace.list(folder, after, 100).unwrap().0;
                let listed: Vec<_> = listed.iter().map(|found| found.name.path()).collect();
                let expected: Vec<_> = names.iter().filter(|name| name.as_str() > after).cloned().collect();
                assert_eq!(listed, expected, "after {after:?}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_into_the_quota_is_refused_and_leaves_nothing() {
    for world in World::each(Some(1)) {
        let (bytes, name) = pack(&vec![7; 600 * 1024]);
        world.put(name, &bytes).unwrap();
        let (bytes, second) = pack(&vec![8; 600 * 1024]);
        assert_eq!(world.put(second, &bytes).unwrap_err().code, "full");
        let said = world.namespace.begin(second, Some(bytes.len() as u64)).err().unwrap();
        assert_eq!(said.code, "full", "before the bytes come");
        assert!(!world.namespace.has(second).unwrap());
        assert_eq!(world.namespace.delete(name, "backup").unwrap_err().status.as_u16(), 409, "nobody holds a lease");
        let (held, id) = lease(b"lease");
        world.put(ObjectName::Lease(id), &held).unwrap();
        assert_eq!(world.namespace.delete(name, "other").unwrap_err().status.as_u16(), 409, "it is another's");
        world.namespace.delete(name, "backup").unwrap();
        assert_eq!(world.namespace.delete(name, "backup").unwrap_err().status.as_u16(), 404, "it is gone");
        world.namespace.delete(ObjectName::Lease(id), "backup").unwrap();
        assert_eq!(world.put(second, &bytes).unwrap(), Stored::New);
        let counted = world.namespace.usage().0;
        assert_eq!(world.again(Some(1)).usage().0, counted, "what was counted along is what is there");
    }
}

#[test]
fn a_snapshot_is_taken_only_from_who_holds_a_lease() {
    for world in World::each(None) {
        let (record, hash) = object(ObjectKind::Snapshot, b"record");
        let snapshot = ObjectName::Snapshot(SnapshotId(hash));
        assert_eq!(world.put(snapshot, &record).unwrap_err().status.as_u16(), 409);
        let (bytes, id) = lease(b"lease");
        world.put(ObjectName::Lease(id), &bytes).unwrap();
        // Another token's lease does not count.
        let commit = |token| world.put_as(token, snapshot, &record);
        assert_eq!(commit("other").unwrap_err().status.as_u16(), 409);
        let (revocation, _) = object(ObjectKind::Revocation, &id.0);
        world.put(ObjectName::Revocation(id), &revocation).unwrap();
        assert_eq!(commit("backup").unwrap_err().status.as_u16(), 409, "it was revoked");
        world.namespace.store.delete(ObjectName::Revocation(id)).unwrap();
        assert_eq!(commit("backup").unwrap(), Stored::New);
    }
}

/// Nobody but the store is between the server's look and its put there.
#[test]
fn a_snapshot_whose_lease_is_revoked_while_it_is_stored_in_a_bucket_is_taken_back() {
    let world = World::in_bucket(None);
    let (bytes, id) = lease(b"lease");
    world.put(ObjectName::Lease(id), &bytes).unwrap();
    let (record, hash) = object(ObjectKind::Snapshot, b"record");
    let snapshot = ObjectName::Snapshot(SnapshotId(hash));
    let revocation = ObjectName::Revocation(id);
    world.objects.as_ref().unwrap().after_put("snapshots/", move |inner| {
        futures::executor::block_on(inner.put(&revocation.path().into(), b"x".as_slice().into())).unwrap();
    });
    assert_eq!(world.put(snapshot, &record).unwrap_err().status.as_u16(), 409);
    assert!(!world.namespace.has(snapshot).unwrap());
    // One that could not be taken back is not said to be stored.
    world.namespace.store.put_new(snapshot, &record).unwrap();
    assert_eq!(world.put(snapshot, &record).unwrap_err().status.as_u16(), 409);
}

#[test]
fn leases_in_a_bucket_are_renewed_as_long_as_they_are_there_and_outlive_the_server() {
    let world = World::in_bucket(Some(1));
    let objects = world.objects.clone().unwrap();
    let (bytes, id) = lease(b"lease");
    let (lease, renewal) = (ObjectName::Lease(id), ObjectName::Renewal(id));
    assert_eq!(world.put(renewal, &bytes).unwrap_err().status.as_u16(), 409, "there is no lease yet");
    world.put(lease, &bytes).unwrap();
    for hours in 1..4 {
        objects.pass(Duration::from_secs(3600));
        world.put(renewal, &bytes).unwrap();
        // A lease that is put again does not get younger.
        assert_eq!(world.put(lease, &bytes).unwrap(), Stored::Existed);
        assert_eq!(world.namespace.find(renewal).unwrap().stored_ms, hours * 3_600_000);
        assert_eq!(world.namespace.find(lease).unwrap().stored_ms, 0);
        // How old it is is nothing to this server.
        world.namespace.expire_leases(i64::MAX);
    }
    let held = (world.namespace.find(lease).unwrap().bytes, world.namespace.find(renewal).unwrap().bytes);
    assert_eq!(world.namespace.usage().0, Some(held.0 + held.1), "a renewal takes room once");
    let again = world.again(None);
    assert!(again.owns("backup", id) && !again.owns("other", id));
    again.expire_leases(0);
    assert!(again.owns("backup", id));
    again.store.delete(lease).unwrap();
    again.expire_leases(0);
    assert!(!again.owns("backup", id), "somebody else took it away");
    assert!(fs::read_dir(world.folder.path().join("leases/office")).unwrap().next().is_none());
}

#[test]
fn a_renewal_makes_a_lease_young_and_one_that_is_not_renewed_is_given_up() {
    let world = World::new(None);
    let (bytes, id) = lease(b"lease");
    let (lease, renewal) = (ObjectName::Lease(id), ObjectName::Renewal(id));
    assert_eq!(world.put(renewal, &bytes).unwrap_err().status.as_u16(), 409, "there is no lease yet");
    world.put(lease, &bytes).unwrap();
    assert!(world.namespace.store.is_held(lease).unwrap(), "for processes on this machine");
    world.put(renewal, &bytes).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    for name in [lease, renewal] {
        File::options().write(true).open(world.path(name)).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(world.put(renewal, &bytes).unwrap(), Stored::Existed);
    let renewed = world.namespace.find(renewal).unwrap().stored_ms;
    assert!(now_ms() - renewed < 60_000);
    world.namespace.expire_leases(now_ms());
    assert!(world.namespace.store.is_held(lease).unwrap());
    world.namespace.expire_leases(renewed + 31 * 60 * 1000);
    assert!(!world.namespace.store.is_held(lease).unwrap());
    assert_eq!(world.put(renewal, &bytes).unwrap_err().status.as_u16(), 409);
    assert!(world.namespace.owns("backup", id));
    world.namespace.delete(lease, "backup").unwrap();
    assert!(!world.namespace.has(renewal).unwrap(), "it goes with its lease");
}

#[test]
fn a_server_that_starts_again_takes_up_its_clients_leases() {
    let World { folder, namespace, .. } = World::new(None);
    let (bytes, id) = lease(b"lease");
    let name = ObjectName::Lease(id);
    let mut incoming = namespace.begin(name, None).unwrap();
    incoming.append(&bytes).unwrap();
    incoming.finish("backup").unwrap();
    drop(namespace);
    let local = Store::open_local(&folder.path().join("r")).unwrap();
    assert!(!local.is_held(name).unwrap(), "as after a crash");
    let again = open(folder.path(), None);
    assert!(local.is_held(name).unwrap());
    assert!(again.owns("backup", id) && !again.owns("other", id));
    again.delete(name, "backup").unwrap();
    drop(again);
    assert!(fs::read_dir(folder.path().join("leases/office")).unwrap().next().is_none());
}

#[test]
fn the_lease_of_a_process_on_this_machine_is_always_young_to_clients() {
    let World { folder, namespace, .. } = World::new(None);
    drop(namespace);
    let root = folder.path().join("r");
    fs::remove_dir_all(&root).unwrap();
    let options = InitOptions::new(Suite::None, 0);
    let store = Store::create_local(&root).unwrap();
    let repository = Repository::create(store, &options, &Unlock::Open, "", Entropy::seeded(1)).unwrap();
    let held = Lease::put(&repository, "import").unwrap();
    let name = ObjectName::Lease(held.id().unwrap());
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    File::options().write(true).open(root.join(name.path())).unwrap().set_modified(old).unwrap();
    let namespace = open(folder.path(), None);
    let listed = namespace.list("leases", "", 10).unwrap().0;
    assert_eq!(listed.len(), 1);
    assert!(now_ms() - listed[0].stored_ms < 60_000);
}

#[test]
fn one_configuration_stays() {
    let other = tempfile::tempdir().unwrap();
    let configuration = |seed| {
        let root = other.path().join(format!("{seed}"));
        let options = InitOptions::new(Suite::None, 0);
        let store = Store::create_local(&root).unwrap();
        drop(Repository::create(store, &options, &Unlock::Open, "", Entropy::seeded(seed)).unwrap());
        fs::read(root.join("config")).unwrap()
    };
    let [one, two] = [configuration(1), configuration(2)];
    for world in World::each(None) {
        let put = |bytes: &[u8]| world.put_as("admin", ObjectName::Config, bytes);
        assert_eq!(put(&one[1..]).unwrap_err().status.as_u16(), 400);
        assert_eq!(put(&one).unwrap(), Stored::New);
        assert_eq!(put(&one).unwrap(), Stored::Existed);
        assert_eq!(put(&two).unwrap_err().status.as_u16(), 409);
        assert_eq!(world.bytes(ObjectName::Config, &Part::Whole).unwrap(), one);
    }
}
