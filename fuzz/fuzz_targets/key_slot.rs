//! A key slot, read before any key is known; the key bundle of a slot that is open to everybody; and a slot opened with a
//! private key.
//!
//! Input: control (1; bit 0 seals the bundle again), the object. Passphrases are not tried: stretching takes what memory
//! and time the slot asks for.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use repo_core::entropy::Entropy;
use repo_core::id::SlotId;
use repo_core::keys::recipient::PrivateKey;
use repo_core::keys::slot::{Argon2Cost, Grant, Lock, NewSlot, Unlock, encode, inspect, open};
use repo_core::keys::{Role, RoleKeys, derive};
use repo_core::seal::{NONCE_ZERO, Suite, TAG_LEN};
use repo_fuzz::{check_error, config, has, write_seeds};
use zeroize::Zeroizing;

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some((control, bytes)) = input.split_first() else { return false };
    let mut bytes = bytes.to_vec();
    if has(*control, 0) {
        repair(&mut bytes);
    }
    let id = SlotId(*blake3::hash(&bytes).as_bytes());
    assert!(inspect(SlotId([0; 32]), &bytes).is_err(), "another name");
    let info = inspect(id, &bytes).inspect_err(check_error);
    match open(id, &bytes, &Unlock::PrivateKey(recipient()), config().id) {
        Ok(Some(opened)) => {
            assert_eq!(opened.grant, info.as_ref().expect("it opens").grant);
            return true;
        }
        Ok(None) => {}
        Err(error) => check_error(&error),
    }
    match open(id, &bytes, &Unlock::Open, config().id) {
        Ok(Some(opened)) => {
            assert_eq!(info.expect("it opens").kind, "open");
            if let Some(master) = opened.master {
                let expected = RoleKeys::from_master(&master);
                for role in [Role::Identity, Role::Structure, Role::Data] {
                    assert_eq!(
                        opened.roles.get(role).expect("all are there"),
                        expected.get(role).expect("all are there")
                    );
                }
            }
            true
        }
        Ok(None) => false,
        Err(error) => {
            check_error(&error);
            false
        }
    }
}

/// The holder of a private key that some seeds are sealed to.
fn recipient() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::generate(&Entropy::seeded(2)).expect("seeded"))
}

/// Header (16) ‖ parameter length (4) ‖ parameters ‖ sealed key bundle. The salt is what follows CBOR's key 3.
fn repair(bytes: &mut [u8]) {
    let Some(len) = bytes.get(16..20).map(|len| u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize) else {
        return;
    };
    let Some((before, bundle)) = bytes.split_at_mut_checked(len.saturating_add(20)) else { return };
    let salt = before.windows(35).find_map(|window| window.strip_prefix(&[0x03, 0x58, 0x20]));
    let Some((salt, (body, tag))) = salt.zip(bundle.split_last_chunk_mut::<TAG_LEN>()) else { return };
    let sealer = Suite::None.sealer(&derive("cairn v1 open key slot", &[salt]));
    *tag = sealer.seal_in_place(&NONCE_ZERO, &[&*before, config().id.as_bytes()].concat(), body);
}

fn seeds() -> Vec<Vec<u8>> {
    let (master, entropy) = (Zeroizing::new([9; 32]), Entropy::seeded(1));
    let public = recipient().public();
    let passphrase = Lock::Passphrase { text: "x", cost: Argon2Cost::CHEAPEST };
    let mut seeds = Vec::new();
    for (lock, grant) in [
        (Lock::Open, Grant::Admin),
        (passphrase, Grant::Admin),
        (Lock::Recipient(&public), Grant::Writer),
        (Lock::Recipient(&public), Grant::Structure),
    ] {
        let new = NewSlot { lock, grant, label: "first", created_ms: 1 };
        let slot = encode(&new, &master, config().id, &entropy).expect("sound memory");
        seeds.extend([0, 1].map(|control| [&[control], &slot[..]].concat()));
    }
    seeds
}
