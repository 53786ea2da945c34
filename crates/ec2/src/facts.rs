//! What the EC2 and STS wire is: actions, their parameters and response
//! members by name and type, from botocore's service model
//! (`facts/generate.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// The generated file.
const TEXT: &str = include_str!("../facts/ec2.facts");

static FACTS: LazyLock<Facts> = LazyLock::new(|| Facts::parse(TEXT));

/// Type of a parameter or response member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Decimal,
    /// `true` or `false`.
    Boolean,
    /// RFC 3339 in UTC.
    Timestamp,
    /// Base64.
    Blob,
    /// Named members.
    Structure,
    /// Elements, all as the only member.
    List,
}

/// A parameter or response member.
#[derive(Debug)]
pub struct Member {
    /// Name on the wire; `N` for the element of a parameter's list.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Whether a request must have it.
    pub required: bool,
    /// Members of a structure; the element of a list.
    pub members: Vec<Member>,
}

/// An action of which everything is known.
#[derive(Debug)]
pub struct Action {
    /// Such as `RunInstances`.
    pub name: &'static str,
    /// `ec2` or `sts`.
    pub service: &'static str,
    /// Parameters.
    pub parameters: Vec<Member>,
    /// Members of the response.
    pub members: Vec<Member>,
    /// Names that the parameter Filter documents.
    pub filters: Vec<&'static str>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Facts {
    /// Actions of which everything is known, by name.
    pub actions: BTreeMap<&'static str, Action>,
    /// Other actions of EC2.
    pub others: BTreeSet<&'static str>,
}

/// The facts, read once.
pub fn facts() -> &'static Facts {
    &FACTS
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "string" => Self::String,
            "integer" | "long" => Self::Integer,
            "double" | "float" => Self::Decimal,
            "boolean" => Self::Boolean,
            "timestamp" => Self::Timestamp,
            "blob" => Self::Blob,
            "structure" => Self::Structure,
            "list" => Self::List,
            _ => return None,
        })
    }
}

impl Facts {
    /// Whether EC2 has an action of that name.
    #[must_use]
    pub fn is_ec2(&self, name: &str) -> bool {
        let known = self.actions.get(name);
        self.others.contains(name) || known.is_some_and(|action| action.service == "ec2")
    }

    /// Of the generated text; lines that are none of its own are left out,
    /// and a test says that there are none.
    fn parse(text: &'static str) -> Self {
        let mut facts = Self::default();
        let mut current: Option<Action> = None;
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let words: Vec<&'static str> = line.split_whitespace().collect();
            match words[..] {
                ["other", name] => {
                    facts.others.insert(name);
                }
                ["action", service, name] => {
                    facts.keep(current.take());
                    current = Some(Action {
                        name,
                        service,
                        parameters: Vec::new(),
                        members: Vec::new(),
                        filters: Vec::new(),
                    });
                }
                ["filter", name] => {
                    if let Some(action) = &mut current {
                        action.filters.push(name);
                    }
                }
                [way @ ("in" | "out"), name, kind] => {
                    let member = member(name, kind, 1, &mut lines);
                    if let (Some(action), Some(member)) = (&mut current, member) {
                        match way {
                            "in" => action.parameters.push(member),
                            _ => action.members.push(member),
                        }
                    }
                }
                _ => {}
            }
        }
        facts.keep(current);
        facts
    }

    fn keep(&mut self, action: Option<Action>) {
        if let Some(action) = action {
            self.actions.insert(action.name, action);
        }
    }
}

type Lines = std::iter::Peekable<std::str::Lines<'static>>;

/// One member and, from the lines that follow, what is deeper.
fn member(name: &'static str, kind: &str, depth: usize, lines: &mut Lines) -> Option<Member> {
    let mut members = Vec::new();
    while let Some(line) = lines.peek() {
        let inner = line.trim_start_matches('\t');
        if line.len() - inner.len() <= depth {
            break;
        }
        let words: Vec<&'static str> = inner.split(' ').collect();
        lines.next();
        if let [name, kind] = words[..] {
            members.extend(member(name, kind, depth + 1, lines));
        }
    }
    Some(Member {
        name,
        kind: Kind::parse(kind.trim_end_matches('!'))?,
        required: kind.ends_with('!'),
        members,
    })
}

impl Member {
    /// The member of a structure with that name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// The paths of everything below and at `self` that holds a value, with
    /// `.` between names.
    pub fn leaves(&self, above: &str, into: &mut Vec<String>) {
        let path = match above {
            "" => self.name.to_owned(),
            _ => format!("{above}.{}", self.name),
        };
        if self.members.is_empty() {
            into.push(path);
        } else {
            for member in &self.members {
                member.leaves(&path, into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(members: &[Member]) -> usize {
        members.iter().map(|m| 1 + count(&m.members)).sum()
    }

    #[test]
    fn every_line_of_the_file_is_taken() {
        let mut taken = facts().others.len() + 1;
        for action in facts().actions.values() {
            taken += 1 + count(&action.parameters) + count(&action.members) + action.filters.len();
        }
        assert_eq!(taken, TEXT.lines().count());
    }

    #[test]
    fn run_instances_is_as_on_the_wire() {
        let run = &facts().actions["RunInstances"];
        let mut paths = Vec::new();
        for parameter in &run.parameters {
            parameter.leaves("", &mut paths);
        }
        for path in [
            "NetworkInterface.N.SecurityGroupId.N",
            "TagSpecification.N.Tag.N.Key",
            "BlockDeviceMapping.N.Ebs.VolumeSize",
        ] {
            assert!(paths.iter().any(|p| p == path), "{path} in {paths:?}");
        }
        let required: Vec<_> = run.parameters.iter().filter(|p| p.required).collect();
        assert_eq!(required.len(), 2, "MinCount and MaxCount: {required:?}");
    }
}
