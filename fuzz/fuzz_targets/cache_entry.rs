//! Foreign bytes in the cache are rejected, or decode to an entry of the requested key.
#![no_main]

use account_service::{
    coherence::{Entry, Namespace, Tag},
    domain::{Key, OrganizationName, Username},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let user = Username::parse_existing("oliviaowner").expect("a name");
    let organization = OrganizationName::parse_existing("olivia-org").expect("a name");
    let keys = [
        Key::User(user.clone()),
        Key::Organization(organization.clone()),
        Key::Membership(organization, user),
    ];
    let namespace = Namespace::new("deployment", "generation");
    for key in keys {
        let cache_key = namespace.key(&key);
        let Some(entry) = Entry::decode(bytes, &cache_key, &key) else {
            continue;
        };
        if let Tag::Present { record, .. } = &entry.tag {
            assert_eq!(record.key(), key);
        }
        let again = Entry::decode(&entry.encode(&cache_key), &cache_key, &key);
        assert_eq!(again, Some(entry));
    }
});
