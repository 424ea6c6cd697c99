//! `vosrun capabilities`: what moves and what does not.

use serde_json::{json, Map, Value};

use super::out::{print, print_json};
use super::table::table;
use crate::capabilities::{all, Area, Capability, Support, Way, WAYS};

/// Options of `vosrun capabilities`.
#[derive(Debug, clap::Args)]
pub struct CapabilitiesArgs {
    /// Print the table of README.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// Lists every kind of state that a program can hold.
///
/// # Errors
/// When standard output cannot be written.
pub fn capabilities(args: &CapabilitiesArgs, as_json: bool) -> anyhow::Result<u8> {
    let rows = all();
    if as_json {
        let rows: Vec<Value> = rows.iter().map(document).collect();
        print_json(json!({ "capabilities": rows }))?;
    } else if args.markdown {
        print(&markdown(&rows))?;
    } else {
        print(&listing(&rows))?;
    }
    Ok(0)
}

/// A row for machines.
fn document(row: &Capability) -> Value {
    let mut members = Map::new();
    members.insert("name".into(), row.name.into());
    members.insert("area".into(), row.area.title().into());
    members.insert("what".into(), row.what.into());
    for (way, word) in WAYS {
        let support = row.support(way);
        let mut answer = json!({ "support": support.word() });
        match support {
            Support::Absent(errno) => answer["errno"] = errno.into(),
            other => {
                if let Some(code) = other.code() {
                    answer["code"] = code.into();
                }
            }
        }
        members.insert(word.into(), answer);
    }
    members.into()
}

/// What a cell of the table says.
fn cell(support: Support) -> String {
    match support {
        Support::Moves => "✔".into(),
        Support::Warned(code) => format!("⚠ {code}"),
        Support::Refused(code) => format!("✘ {code}"),
        Support::Absent(errno) => format!("– {errno}"),
        Support::Lost => "lost".into(),
    }
}

fn listing(rows: &[Capability]) -> String {
    let header = ["NAME", "LAUNCHED", "BY ROOT", "ATTACHED", "BY ROOT", "WHAT"];
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![row.name.to_owned()];
            cells.extend(WAYS.map(|(way, _)| cell(row.support(way))));
            cells.push(row.what.to_owned());
            cells
        })
        .collect();
    let legend = "\n✔ moves  ⚠ moves, `check` warns  ✘ refused before anything is touched  \
                  – the call, or attaching, fails  lost: see docs/limits.md\n\
                  vosrun explain CODE tells more about a code.\n";
    table(&header, &lines) + legend
}

/// A table with a line for each area: what moves, what moves in some ways only, what does not.
fn markdown(rows: &[Capability]) -> String {
    let mut text = String::from("| state | moves | does not move |\n|---|---|---|\n");
    let mut areas: Vec<Area> = rows.iter().map(|row| row.area).collect();
    areas.dedup();
    for area in areas {
        let own = || rows.iter().filter(|row| row.area == area);
        let going = own().filter(|row| moves(row)).map(with_exceptions);
        let staying = own().filter(|row| !moves(row)).map(with_code);
        text += &format!("| {} | {} | {} |\n", area.title(), joined(going), joined(staying));
    }
    text
}

/// In one way at least.
fn moves(row: &Capability) -> bool {
    let carried = |support| matches!(support, Support::Moves | Support::Warned(_));
    WAYS.iter().any(|(way, _)| carried(row.support(*way)))
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("; ")
}

/// `inotify watches (attached: VOS-INOTIFY)`.
fn with_exceptions(row: &Capability) -> String {
    let mut exceptions: Vec<String> = Vec::new();
    for (user, root, words) in [
        (Way::LaunchedUser, Way::LaunchedRoot, "launched"),
        (Way::AttachedUser, Way::AttachedRoot, "attached"),
    ] {
        let (user, root) = (row.support(user), row.support(root));
        let mut except = |support, by: &str| {
            if support != Support::Moves {
                exceptions.push(format!("{words}{by}: {}", short(support)));
            }
        };
        match user == root {
            true => except(user, ""),
            false => {
                except(user, " by an ordinary user");
                except(root, " by root");
            }
        }
    }
    match exceptions.is_empty() {
        true => row.what.to_owned(),
        false => format!("{} ({})", row.what, exceptions.join(", ")),
    }
}

fn short(support: Support) -> String {
    match support {
        Support::Moves => "moves".into(),
        Support::Warned(code) => format!("warning `{code}`"),
        Support::Refused(code) => format!("`{code}`"),
        Support::Absent(errno) => errno.into(),
        Support::Lost => "lost".into(),
    }
}

/// `TCP sockets (VOS-TCP)`.
fn with_code(row: &Capability) -> String {
    let mut answers: Vec<String> = Vec::new();
    for (way, _) in WAYS {
        let answer = short(row.support(way));
        if !answers.contains(&answer) {
            answers.push(answer);
        }
    }
    format!("{} ({})", row.what, answers.join(", attached: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [Capability; 3] = [
        Capability::moves(Area::Descriptors, "a", "pipes"),
        Capability::moves(Area::Descriptors, "b", "watches")
            .attached(Support::Refused("VOS-INOTIFY")),
        Capability::refused(Area::Sockets, "c", "TCP sockets", "VOS-TCP"),
    ];

    #[test]
    fn the_table_of_the_readme() {
        assert_eq!(
            markdown(&ROWS),
            "| state | moves | does not move |\n|---|---|---|\n\
             | Descriptors | pipes; watches (attached: `VOS-INOTIFY`) |  |\n\
             | Sockets |  | TCP sockets (`VOS-TCP`) |\n"
        );
    }

    #[test]
    fn a_row_for_machines() {
        let row = document(&ROWS[1]);
        assert_eq!(row["launched_user"], json!({ "support": "moves" }));
        let refused = json!({ "support": "refused", "code": "VOS-INOTIFY" });
        assert_eq!(row["attached_root"], refused);
    }

    #[test]
    fn a_line_for_each_row() {
        let text = listing(&ROWS);
        assert!(text.lines().any(|line| line.starts_with("c ") && line.ends_with("TCP sockets")));
        assert_eq!(text.lines().count(), ROWS.len() + 4);
    }
}
