use super::*;

const REPOSITORY: RepositoryId = RepositoryId([3; 16]);
const MASTER: [u8; KEY_LEN] = [9; KEY_LEN];

fn passphrase(text: &str) -> Unlock<'_> {
    Unlock::Passphrase { text, cost: Argon2Cost::CHEAPEST }
}

fn private_key(seed: u64) -> PrivateKey {
    PrivateKey::generate(&Entropy::seeded(seed)).unwrap()
}

fn slot_of(lock: Lock<'_>, grant: Grant) -> (SlotId, Vec<u8>) {
    let new = NewSlot { lock, grant, label: "first", created_ms: 1 };
    let bytes = encode(&new, &Zeroizing::new(MASTER), REPOSITORY, &Entropy::seeded(1)).unwrap();
    (SlotId(*blake3::hash(&bytes).as_bytes()), bytes)
}

fn slot(unlock: &Unlock<'_>) -> (SlotId, Vec<u8>) {
    match unlock {
        Unlock::Open => slot_of(Lock::Open, Grant::Admin),
        Unlock::Passphrase { text, cost } => slot_of(Lock::Passphrase { text, cost: *cost }, Grant::Admin),
        Unlock::PrivateKey(private) => slot_of(Lock::Recipient(&private.public()), Grant::Admin),
    }
}

#[test]
fn the_right_passphrase_opens_and_a_wrong_one_or_another_repository_does_not() {
    let (id, bytes) = slot(&passphrase("correct horse"));
    let opened = open(id, &bytes, &passphrase("correct horse"), REPOSITORY).unwrap().unwrap();
    assert_eq!(opened.master.unwrap()[..], MASTER);
    assert!(open(id, &bytes, &passphrase("wrong horse"), REPOSITORY).unwrap().is_none());
    assert!(open(id, &bytes, &passphrase("correct horse"), RepositoryId([4; 16])).unwrap().is_none());
    assert!(open(id, &bytes, &Unlock::Open, REPOSITORY).unwrap().is_none());
}

#[test]
fn the_private_key_of_the_recipient_opens_and_no_other_does() {
    let (own, other) = (private_key(1), private_key(2));
    let (id, bytes) = slot(&Unlock::PrivateKey(&own));
    let opened = open(id, &bytes, &Unlock::PrivateKey(&own), REPOSITORY).unwrap().unwrap();
    assert_eq!(opened.master.unwrap()[..], MASTER);
    assert!(open(id, &bytes, &Unlock::PrivateKey(&other), REPOSITORY).unwrap().is_none());
    assert!(open(id, &bytes, &Unlock::PrivateKey(&own), RepositoryId([4; 16])).unwrap().is_none());
    assert!(open(id, &bytes, &passphrase("x"), REPOSITORY).unwrap().is_none());
    let info = inspect(id, &bytes).unwrap();
    assert_eq!((info.kind, info.recipient), ("recipient", Some(own.public().recipient())));
}

#[test]
fn a_slot_grants_what_it_says_and_no_more() {
    let all = RoleKeys::from_master(&Zeroizing::new(MASTER));
    let own = private_key(1);
    let public = own.public();
    for grant in Grant::ALL {
        for lock in [Lock::Recipient(&public), Lock::Passphrase { text: "x", cost: Argon2Cost::CHEAPEST }] {
            let unlock = match lock {
                Lock::Recipient(_) => Unlock::PrivateKey(&own),
                _ => passphrase("x"),
            };
            let (id, bytes) = slot_of(lock, grant);
            let opened = open(id, &bytes, &unlock, REPOSITORY).unwrap().unwrap();
            assert_eq!((opened.grant, inspect(id, &bytes).unwrap().grant), (grant, grant));
            assert_eq!(opened.master.is_some(), grant == Grant::Admin);
            let granted = |role: Role| {
                let key = opened.roles.get(role).ok();
                assert!(key.is_none_or(|key| key == all.get(role).unwrap()));
                key.is_some()
            };
            let held = [Role::Identity, Role::Structure, Role::Data].map(granted);
            let (expected, adds) = match grant {
                Grant::Admin | Grant::Restore => ([true, true, true], true),
                Grant::Writer => ([true, true, false], true),
                Grant::Structure => ([false, true, false], false),
            };
            assert_eq!((held, opened.roles.public_data().is_ok()), (expected, adds), "{grant:?}");
            if adds {
                assert_eq!(opened.roles.public_data().unwrap(), all.public_data().unwrap());
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_a_slot_is_called_damage_not_a_wrong_passphrase() {
    let own = private_key(1);
    for unlock in [passphrase("x"), Unlock::Open, Unlock::PrivateKey(&own)] {
        let (id, bytes) = slot(&unlock);
        assert!(open(id, &bytes, &unlock, REPOSITORY).unwrap().is_some());
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            let error = open(id, &bytes, &unlock, REPOSITORY).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
        }
    }
}

/// What somebody who can write the repository may try: the name fits, so the seal must tell.
#[test]
fn a_slot_that_was_changed_and_named_anew_does_not_open() {
    let own = private_key(1);
    for unlock in [passphrase("x"), Unlock::PrivateKey(&own)] {
        let (_, bytes) = slot(&unlock);
        for at in (16..bytes.len()).step_by(7) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let id = SlotId(*blake3::hash(&bytes).as_bytes());
            // A cost that a flipped bit made enormous is not tried here.
            if inspect(id, &bytes).is_ok() && !(matches!(unlock, Unlock::Passphrase { .. }) && at < 80) {
                assert!(!matches!(open(id, &bytes, &unlock, REPOSITORY), Ok(Some(_))), "byte {at}");
            }
        }
    }
}
