//! The generated pages of the documentation: settings and metrics, from the code.
//! `UPDATE_DOCS=yes cargo test --test it reference::` writes them.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use account_service::{config::Cli, telemetry};
use clap::CommandFactory as _;

/// Compares a page with what the code says, or writes it.
fn assert_generated(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, expected).unwrap();
    }
    let page = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        page == expected,
        "{path} is outdated: run `UPDATE_DOCS=yes cargo test --test it reference::`"
    );
}

#[test]
fn the_page_of_settings_is_generated_from_the_command_line() {
    let mut page = String::from(
        "# Settings\n\n\
         Generated from `src/config.rs` and `src/config/`. Each setting is a flag and an environment\n\
         variable; an empty variable counts as unset. Secrets are not settings: the Momento credential is read from\n\
         Secrets Manager. The commands for people are in [command-line.md](command-line.md).\n",
    );
    let mut of_serve = BTreeSet::new();
    let commands = Cli::command();
    // Commands for people, see docs/command-line.md, have subjects or subcommands.
    let is_for_people =
        |it: &&clap::Command| it.has_subcommands() || it.get_positionals().next().is_some();
    for command in commands.get_subcommands().filter(|it| !is_for_people(it)) {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string);
        writeln!(page, "\n## `{name}`\n\n{}.", about.unwrap_or_default()).unwrap();
        let rows: Vec<_> = command.get_arguments().map(row).collect();
        let is_of_serve = |row: &String| of_serve.contains(row);
        if rows.iter().any(is_of_serve) {
            page.push_str("Some settings are those of `serve`.\n");
        }
        let own: Vec<_> = rows.iter().filter(|row| !is_of_serve(row)).collect();
        if !own.is_empty() {
            page.push_str("\n| flag | variable | default | |\n|---|---|---|---|\n");
        }
        for row in own {
            page.push_str(row);
        }
        if name == "serve" {
            of_serve.extend(rows);
        }
    }
    assert_generated("docs/settings.md", &page);
}

fn row(setting: &clap::Arg) -> String {
    let flag = setting.get_long().unwrap_or_default();
    let variable = setting.get_env().map(|name| name.to_string_lossy());
    let variable = variable.map_or(String::new(), |name| format!("`{name}`"));
    let defaults = setting.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    let default = match defaults.join(",") {
        default if !default.is_empty() && setting.get_action().takes_values() => {
            format!("`{default}`")
        }
        _ if setting.is_required_set() => "required".to_owned(),
        _ => String::new(),
    };
    let help = setting.get_long_help().or_else(|| setting.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = help.replace('|', "\\|");
    format!("| `--{flag}` | {variable} | {default} | {help} |\n")
}

#[test]
fn the_page_of_metrics_is_generated_from_their_descriptions() {
    let mut page = String::from(
        "# Metrics\n\n\
         Generated from `src/telemetry/metrics.rs`. `--metrics-addr` serves them for Prometheus.\n\
         [operations.md](operations.md#metrics) shows how to use them.\n\n\
         | metric | |\n|---|---|\n",
    );
    for (name, help) in telemetry::ALL {
        writeln!(page, "| `{name}` | {help} |").unwrap();
    }
    assert_generated("docs/metrics.md", &page);
}
