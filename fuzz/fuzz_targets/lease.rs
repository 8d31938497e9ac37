//! A lease as it is after it was authenticated: what decodes comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::lease::LeaseInfo;
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let lease = match LeaseInfo::decode(input) {
        Ok(lease) => lease,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    let encoded = lease.encode();
    let again = LeaseInfo::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(again, lease);
    assert_eq!(again.encode(), encoded, "a lease has one encoding");
    true
}

fn seeds() -> Vec<Vec<u8>> {
    ["gc", "import", ""].map(|operation| LeaseInfo { operation: operation.to_owned(), process: 70_000 }.encode()).into()
}
