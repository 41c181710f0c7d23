//! Tests of the connection pool.

use super::*;

fn pool(authenticated: usize, unauthenticated: usize) -> Arc<Pool> {
    Pool::new(Limits {
        authenticated,
        unauthenticated,
        authentication: Duration::from_secs(30),
        lifetime: Duration::from_secs(3600),
    })
}

fn is_evicted(open: &OpenConnection) -> bool {
    open.0.status.load(Ordering::Acquire) == EVICTED
}

fn name(name: &str) -> Name {
    Name::Service(name.into())
}

fn hold(open: &OpenConnection, bytes: usize) -> MemoryCharge {
    let mut held = MemoryCharge::new(Some(open.0.clone()));
    held.add(bytes);
    held
}

fn open_as(pool: &Arc<Pool>, caller: &str) -> Result<OpenConnection, TooMany> {
    let open = pool.join()?;
    open.0.authenticate(Some(&name(caller)))?;
    Ok(open)
}

#[test]
fn a_new_connection_evicts_the_oldest_unauthenticated_one() {
    let pool = pool(10, 2);
    let authenticated = open_as(&pool, "a").unwrap();
    let unauthenticated = [(); 4].map(|()| pool.join().unwrap());
    let evicted = unauthenticated.each_ref().map(is_evicted);
    assert_eq!(evicted, [true, true, false, false]);
    assert!(!is_evicted(&authenticated));
    pool.evict_one();
    assert!(is_evicted(&unauthenticated[2]));
    // An evicted connection is not authenticated afterwards.
    unauthenticated[0].0.authenticate(None).unwrap();
    assert!(is_evicted(&unauthenticated[0]));
    drop((authenticated, unauthenticated));
    let state = pool.lock();
    assert_eq!((state.unauthenticated.len(), state.count), (0, 0));
    assert!(state.authenticated.is_empty());
}

#[test]
fn the_caller_with_the_most_connections_loses_its_oldest_to_callers_with_fewer() {
    let pool = pool(4, 2);
    let many = [(); 3].map(|()| open_as(&pool, "many").unwrap());
    let one = open_as(&pool, "one").unwrap();
    let other = open_as(&pool, "other").unwrap();
    assert_eq!(many.each_ref().map(is_evicted), [true, false, false]);
    // Two, one and one: a caller with one connection gets no second one.
    assert_eq!(open_as(&pool, "one").unwrap_err(), TooMany);
    assert_eq!(open_as(&pool, "many").unwrap_err(), TooMany);
    let fourth = open_as(&pool, "fourth").unwrap();
    assert_eq!(many.each_ref().map(is_evicted), [true, true, false]);
    // One each: no connection can be evicted, so a new one is rejected.
    assert_eq!(pool.join().unwrap_err(), TooMany);
    drop(one);
    let one = open_as(&pool, "one").unwrap();
    assert!([&one, &other, &fourth].iter().all(|it| !is_evicted(it)));
}

#[test]
fn callers_without_names_share_the_limit_of_connections() {
    let pool = pool(2, 2);
    let both = [(); 2].map(|()| pool.join().unwrap());
    for open in &both {
        open.0.authenticate(None).unwrap();
    }
    assert_eq!(pool.join().unwrap_err(), TooMany);
    drop(both);
    pool.join().unwrap();
}
#[test]
fn the_caller_with_the_largest_charge_loses_its_connection_with_the_largest_charge() {
    const QUARTER: usize = MAX_HELD / 4;
    let pool = pool(10, 10);
    let heavy = [(); 2].map(|()| open_as(&pool, "heavy").unwrap());
    let large = open_as(&pool, "large").unwrap();
    let small = open_as(&pool, "small").unwrap();
    let [mut first, second] = heavy.each_ref().map(|open| vec![hold(open, QUARTER)]);
    let of_large = hold(&large, QUARTER + 2);
    first.push(hold(&heavy[0], QUARTER - 2));
    let evicted = || [&heavy[0], &heavy[1], &large, &small].map(is_evicted);
    assert_eq!(evicted(), [false; 4]);
    let of_small = hold(&small, 1);
    assert_eq!(evicted(), [true, false, false, false]);
    // An evicted connection keeps its charge for a while.
    let more_of_small = hold(&small, QUARTER - 1);
    assert_eq!(evicted(), [true, false, false, false]);
    drop(first);
    let more_of_large = hold(&large, QUARTER);
    assert_eq!(evicted(), [true, false, true, false]);
    assert!(large.0.has_large_charge() && !small.0.has_large_charge());
    drop((second, of_large, of_small, more_of_small, more_of_large));
    assert_eq!(pool.held.load(Ordering::Relaxed), 0);
}
