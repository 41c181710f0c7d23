//! Calls and bytes to the backends.

use account_service_bench::{
    load::{Caller, Pace},
    peers::{Backends, Programs},
};
use anyhow::{Result, ensure};
use serde_json::Value;

use crate::runs::{Bench, CONNECTIONS, filled};

pub(crate) async fn remote(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let mut backends = Backends::start_metered(programs)?;
    let service = filled(programs, &backends, &[]).await?;
    println!(
        "\n| checks | calls to the cache, of a check | bytes to the cache, and back | bytes to the table, and back |\n|---|---|---|---|"
    );
    for (name, at_once) in [("alone", 1), ("64 at once", 64)] {
        let caller = Caller::connect(service.subject.target.clone(), CONNECTIONS).await?;
        backends.process.command("calls")?;
        let seen = caller.run(Pace::Closed(at_once), bench.seconds).await?;
        ensure!(seen.failed == 0, "{} failed", seen.failed);
        let checks = seen.calls;
        let counts: Value = serde_json::from_str(&backends.process.command("calls")?)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let of_a_check = |it: &Value| it.as_f64().unwrap_or(f64::NAN) / checks as f64;
        let calls = counts["calls"].as_object().into_iter().flatten();
        let calls: Vec<_> = calls
            .map(|(call, times)| format!("{:.3} {call}", of_a_check(times)))
            .collect();
        let [cache, table] = ["cache", "table"].map(|backend| {
            let [to, back] = [0, 1].map(|way| of_a_check(&counts[backend][way]));
            format!("{to:.0}, {back:.0}")
        });
        println!("| {name} | {} | {cache} | {table} |", calls.join(", "));
    }
    Ok(())
}
