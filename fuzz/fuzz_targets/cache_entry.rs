//! What somebody else wrote into the cache is not believed, and what is believed
//! is about the key that was asked for.
#![no_main]

use account_service::{
    coherence::{Entry, Tag, View},
    domain::{Gist, Key, OrganizationName, Username},
};
use libfuzzer_sys::fuzz_target;

const CACHE_KEY: &str = "v1/deployment/generation/m/olivia-org/oliviaowner";

fuzz_target!(|bytes: &[u8]| {
    let user = Username::parse_existing("oliviaowner").expect("a name");
    let organization = OrganizationName::parse_existing("olivia-org").expect("a name");
    let keys = [
        Key::User(user.clone()),
        Key::Organization(organization.clone()),
        Key::Membership(organization, user),
    ];
    for key in keys {
        let Some(entry) = Entry::decode(bytes, CACHE_KEY, &key) else {
            continue;
        };
        let seen = Gist::told(bytes, CACHE_KEY, &key).map(|(seen, _)| seen);
        match &entry.tag {
            Tag::Present { record, .. } => {
                assert_eq!(record.key(), key);
                let gist = Gist::from(record);
                assert!(seen.is_none_or(|seen| seen == Some(gist)));
            }
            Tag::Absent { .. } => assert!(seen.is_none_or(|seen| seen.is_none())),
            Tag::Lease | Tag::Fence => assert_eq!(seen, None),
        }
        let again = Entry::decode(&entry.encode(CACHE_KEY), CACHE_KEY, &key);
        assert_eq!(again, Some(entry));
    }
});
