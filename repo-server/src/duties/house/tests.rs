use repo_core::lease::{FORGET, Turn};
use repo_core::repository::InitOptions;

use super::*;

const HOUR_MS: i64 = 60 * 60 * 1000;

struct World {
    folder: tempfile::TempDir,
    repository: Repository,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create_local(&folder.path().join("r")).unwrap();
        let options = InitOptions::new(Suite::None, 0);
        let repository = Repository::create(store, &options, &Unlock::Open, "", Entropy::seeded(1)).unwrap();
        Self { folder, repository }
    }

    /// As after a restart.
    fn house(&self) -> (House, Notes) {
        let text = format!(
            "state = \"s\"\n[namespaces.a]\npath = {:?}\n[namespaces.a.duties]\ngc = \"0 3 * * *\"\n\
             retention = {{ schedule = \"0 2 * * *\", keep_last = 1 }}\n",
            self.folder.path().join("r")
        );
        let mut houses = House::all(&Config::parse(&text).unwrap(), &TimeZone::UTC).unwrap();
        (houses.remove(0), Notes::open(self.folder.path()).unwrap())
    }

    /// The duties that ran at an hour.
    fn ran_at(&self, hour: i64) -> Vec<Duty> {
        let (house, notes) = self.house();
        let now_ms = 4800 * HOUR_MS + hour * HOUR_MS;
        house.run_due(&notes, now_ms, &AtomicBool::new(false));
        let duties = notes.of("a").duties.into_iter();
        duties.filter(|(_, done)| done.began_ms == now_ms && !done.is_new()).map(|(duty, _)| duty).collect()
    }
}

#[test]
fn each_duty_has_its_schedule_and_what_was_missed_is_made_up_for_once() {
    let world = World::new();
    // The server is down from the second day to the fifth.
    let ran: Vec<_> = [0, 1, 2, 3, 4, 25, 26, 27, 28, 120, 121, 122].map(|hour| (hour, world.ran_at(hour))).into();
    let (retention, gc) = (|| Duty::Retention, || Duty::Gc);
    let expected = [(2, vec![retention()]), (3, vec![gc()]), (26, vec![retention()]), (27, vec![gc()])];
    let expected = expected.into_iter().chain([(120, vec![retention(), gc()]), (122, vec![retention()])]);
    let ran: Vec<_> = ran.into_iter().filter(|(_, duties)| !duties.is_empty()).collect();
    assert_eq!(ran, expected.collect::<Vec<_>>());
}

#[test]
fn a_duty_that_is_refused_the_turn_stays_due_and_one_that_fails_says_so_until_it_succeeds() {
    let world = World::new();
    world.ran_at(0);
    let turn = Turn::at_snapshots(&world.repository, FORGET).unwrap();
    // The lock is waited for; a client of the server has the lease alone.
    let lease = repo_core::lease::Lease::put(&world.repository, FORGET).unwrap();
    drop(turn);
    assert_eq!(world.ran_at(2), []);
    drop(lease);
    assert_eq!(world.ran_at(2), [Duty::Retention]);

    let config = world.folder.path().join("r/config");
    let bytes = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    assert_eq!(world.ran_at(3), [Duty::Gc]);
    let noted = || world.house().1.of("a").duties.remove(&Duty::Gc).unwrap();
    assert!(noted().error.is_some() && noted().result.is_null(), "{:?}", noted());
    std::fs::write(&config, bytes).unwrap();
    assert_eq!(world.ran_at(27), [Duty::Retention, Duty::Gc]);
    assert!(noted().error.is_none() && noted().result["snapshots"] == 0, "{:?}", noted());
}

#[test]
fn a_server_that_is_told_to_end_begins_no_duty() {
    let world = World::new();
    world.ran_at(0);
    let (house, notes) = world.house();
    house.run_due(&notes, 4900 * HOUR_MS, &AtomicBool::new(true));
    assert!(notes.of("a").duties.values().all(Done::is_new));
}
