//! A request's parameters as a tree, and what is read from it.
//!
//! On the wire a list is flattened: `Filter.1.Value.2` is the second value of
//! the first filter. Which names an action has is said by [`crate::facts`],
//! and which of them Holm understands by the action's declaration.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::SystemTime;

use base64::Engine as _;

use crate::error::Error;
use crate::facts::{Action, Kind, Member};
use crate::form::Pair;

/// Most names with dots between them in one parameter's name.
const DEPTH_MAX: usize = 12;
/// Largest index of a list.
const INDEX_MAX: u32 = 4096;

/// What is at one place of the tree.
#[derive(Clone, Debug)]
enum Node {
    Value(String),
    Inner(BTreeMap<String, Node>),
}

/// One place of the tree: the whole request, a structure or a list's element.
#[derive(Clone, Debug)]
pub struct Parameters {
    path: String,
    node: Node,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            path: String::new(),
            node: Node::Inner(BTreeMap::new()),
        }
    }
}

impl Parameters {
    /// Of decoded pairs.
    ///
    /// # Errors
    /// `MalformedQueryString` if a parameter is given twice or is both a value
    /// and a structure.
    pub fn new(pairs: &[Pair]) -> Result<Self, Error> {
        let mut root = BTreeMap::new();
        for (name, value) in pairs {
            insert(&mut root, name, value)?;
        }
        Ok(Self {
            path: String::new(),
            node: Node::Inner(root),
        })
    }

    /// Its full name on the wire.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The full name on the wire of what is in it.
    #[must_use]
    pub fn inside(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    fn find(&self, name: &str) -> Option<&Node> {
        match &self.node {
            Node::Inner(members) => members.get(name),
            Node::Value(_) => None,
        }
    }

    /// Takes a parameter out of the tree; its value if it was one.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let Node::Inner(members) = &mut self.node else {
            return None;
        };
        match members.get(name) {
            Some(Node::Value(_)) => match members.remove(name) {
                Some(Node::Value(value)) => Some(value),
                _ => None,
            },
            _ => None,
        }
    }

    /// The value as it was sent, the empty one too.
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<&str> {
        match self.find(name) {
            Some(Node::Value(value)) => Some(value),
            _ => None,
        }
    }

    /// A text; an empty one is absent.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// `MissingParameter`.
    pub fn require(&self, name: &str) -> Result<&str, Error> {
        self.text(name)
            .ok_or_else(|| Error::missing(&self.inside(name)))
    }

    /// A value of another type, with what is asked of it.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn parsed<T: FromStr>(&self, name: &str, asked: &str) -> Result<Option<T>, Error> {
        self.text(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| Error::invalid(&self.inside(name), value, asked))
            })
            .transpose()
    }

    /// A whole number.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Error> {
        self.parsed(name, "A whole number is expected.")
    }

    /// A whole number that fits `T`.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn number<T: TryFrom<i64>>(&self, name: &str) -> Result<Option<T>, Error> {
        self.integer(name)?
            .map(|value| {
                T::try_from(value).map_err(|_| {
                    Error::invalid(&self.inside(name), value, "The number is out of range.")
                })
            })
            .transpose()
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Error> {
        self.text(name)
            .map(|value| match value {
                "true" | "True" | "TRUE" | "1" => Ok(true),
                "false" | "False" | "FALSE" | "0" => Ok(false),
                _ => Err(Error::invalid(
                    &self.inside(name),
                    value,
                    "true or false is expected.",
                )),
            })
            .transpose()
    }

    /// Base64 of bytes.
    ///
    /// # Errors
    /// `InvalidParameterValue`, without the value.
    pub fn blob(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.text(name)
            .map(|value| {
                let value: String = value.split_whitespace().collect();
                base64::engine::general_purpose::STANDARD
                    .decode(value)
                    .map_err(|_| Error::invalid(&self.inside(name), "...", "It is not Base64."))
            })
            .transpose()
    }

    /// A moment in RFC 3339.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn time(&self, name: &str) -> Result<Option<SystemTime>, Error> {
        self.text(name)
            .map(|value| {
                humantime::parse_rfc3339_weak(value).map_err(|_| {
                    Error::invalid(&self.inside(name), value, "A time in UTC is expected.")
                })
            })
            .transpose()
    }

    /// A structure, if any member of it was sent.
    #[must_use]
    pub fn structure(&self, name: &str) -> Option<Parameters> {
        match self.find(name) {
            Some(node @ Node::Inner(_)) => Some(Parameters {
                path: self.inside(name),
                node: node.clone(),
            }),
            _ => None,
        }
    }

    /// The texts of a list, in the order of their indexes; empty ones too.
    #[must_use]
    pub fn raw_texts(&self, name: &str) -> Vec<String> {
        let texts = self.elements(name).filter_map(|(_, node)| match node {
            Node::Value(value) => Some(value.clone()),
            Node::Inner(_) => None,
        });
        texts.collect()
    }

    /// The texts of a list, in the order of their indexes; empty ones are
    /// absent.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        let mut texts = self.raw_texts(name);
        texts.retain(|text| !text.is_empty());
        texts
    }

    /// The structures of a list, in the order of their indexes.
    #[must_use]
    pub fn structures(&self, name: &str) -> Vec<Parameters> {
        let structures = self
            .elements(name)
            .filter(|(_, node)| matches!(node, Node::Inner(_)))
            .map(|(index, node)| Parameters {
                path: format!("{}.{index}", self.inside(name)),
                node: node.clone(),
            });
        structures.collect()
    }

    fn elements(&self, name: &str) -> impl Iterator<Item = (u32, &Node)> {
        let mut elements: Vec<(u32, &Node)> = match self.find(name) {
            Some(Node::Inner(members)) => members
                .iter()
                .filter_map(|(index, node)| Some((index.parse().ok()?, node)))
                .collect(),
            _ => Vec::new(),
        };
        elements.sort_by_key(|(index, _)| *index);
        elements.into_iter()
    }

    /// Names and values of all that was sent and is not empty, in the order
    /// of their names.
    #[must_use]
    pub fn leaves(&self) -> Vec<(String, String)> {
        let mut leaves = Vec::new();
        gather(&self.node, &self.path, &mut leaves);
        leaves
    }

    /// Whether a parameter was sent that is not empty.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self.find(name) {
            Some(Node::Value(value)) => !value.is_empty(),
            Some(Node::Inner(_)) => true,
            None => false,
        }
    }

    /// Refuses what the action does not have, what Holm does not understand
    /// of it, values of a wrong type, and what is missing. `understood` are
    /// names with `N` for each index.
    ///
    /// # Errors
    /// `UnknownParameter`, `UnsupportedOperation`, `InvalidParameterValue`,
    /// `MissingParameter`, each naming the parameter.
    pub fn check(&self, action: &Action, understood: &[&str]) -> Result<(), Error> {
        let Node::Inner(members) = &self.node else {
            return Ok(());
        };
        check(&action.parameters, members, "", "", action.name, understood)
    }
}

/// What is at one place and below.
fn gather(node: &Node, path: &str, into: &mut Vec<(String, String)>) {
    match node {
        Node::Value(value) if value.is_empty() => {}
        Node::Value(value) => into.push((path.to_owned(), value.clone())),
        Node::Inner(members) => {
            for (name, node) in members {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                gather(node, &path, into);
            }
        }
    }
}

/// Puts a value at its place.
fn insert(root: &mut BTreeMap<String, Node>, name: &str, value: &str) -> Result<(), Error> {
    let both = || {
        Error::malformed(format!(
            "The parameter {name} is given twice, or with and without members"
        ))
    };
    let mut names: Vec<&str> = name.split('.').collect();
    if names.len() > DEPTH_MAX || names.contains(&"") {
        return Err(Error::unknown_parameter(name));
    }
    let last = names.pop().unwrap_or_default();
    let mut members = root;
    for part in names {
        let inner = members
            .entry(part.to_owned())
            .or_insert_with(|| Node::Inner(BTreeMap::new()));
        match inner {
            Node::Inner(inner) => members = inner,
            // An empty value is absent: a structure may stand there as well.
            Node::Value(old) if old.is_empty() => {
                *inner = Node::Inner(BTreeMap::new());
                match inner {
                    Node::Inner(inner) => members = inner,
                    Node::Value(_) => return Err(both()),
                }
            }
            Node::Value(_) => return Err(both()),
        }
    }
    match members.get(last) {
        None => {
            members.insert(last.to_owned(), Node::Value(value.to_owned()));
            Ok(())
        }
        Some(Node::Inner(_)) if value.is_empty() => Ok(()),
        Some(_) => Err(both()),
    }
}

/// The members of one structure against what it may have.
fn check(
    known: &[Member],
    sent: &BTreeMap<String, Node>,
    path: &str,
    pattern: &str,
    action: &str,
    understood: &[&str],
) -> Result<(), Error> {
    let join = |above: &str, name: &str| match above {
        "" => name.to_owned(),
        _ => format!("{above}.{name}"),
    };
    for member in known.iter().filter(|member| member.required) {
        let there = match sent.get(member.name) {
            Some(Node::Value(value)) => !value.is_empty(),
            Some(Node::Inner(_)) => true,
            None => false,
        };
        if !there {
            return Err(Error::missing(&join(path, member.name)));
        }
    }
    for (name, node) in sent {
        let (path, at) = (join(path, name), join(pattern, name));
        let member = known
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| Error::unknown_parameter(&path))?;
        check_one(member, node, &path, &at, action, understood)?;
    }
    Ok(())
}

/// One parameter or one element of a list.
fn check_one(
    member: &Member,
    node: &Node,
    path: &str,
    pattern: &str,
    action: &str,
    understood: &[&str],
) -> Result<(), Error> {
    match (member.kind, node) {
        (Kind::Structure, Node::Inner(sent)) => {
            check(&member.members, sent, path, pattern, action, understood)
        }
        (Kind::List, Node::Inner(sent)) => {
            let Some(element) = member.members.first() else {
                return Err(Error::unknown_parameter(path));
            };
            for (index, node) in sent {
                let path = format!("{path}.{index}");
                let canonical = !index.starts_with(['0', '+']);
                let number = index.parse::<u32>().ok().filter(|_| canonical);
                if !number.is_some_and(|number| (1..=INDEX_MAX).contains(&number)) {
                    return Err(Error::unknown_parameter(&path));
                }
                let pattern = format!("{pattern}.N");
                check_one(element, node, &path, &pattern, action, understood)?;
            }
            Ok(())
        }
        (Kind::Structure | Kind::List, Node::Value(value)) => match value.is_empty() {
            true => Ok(()),
            false => Err(Error::invalid(path, value, "It is not a single value.")),
        },
        (_, Node::Inner(_)) => Err(Error::unknown_parameter(path)),
        (kind, Node::Value(value)) => {
            if !value.is_empty() && !understood.contains(&pattern) && pattern != "DryRun" {
                return Err(Error::unsupported(format!(
                    "Holm does not support the parameter {path} of {action}"
                )));
            }
            check_value(kind, path, value)
        }
    }
}

/// A value against its type.
fn check_value(kind: Kind, path: &str, value: &str) -> Result<(), Error> {
    let alone = Parameters {
        path: String::new(),
        node: Node::Inner(BTreeMap::from([(
            path.to_owned(),
            Node::Value(value.to_owned()),
        )])),
    };
    match kind {
        Kind::Integer => alone.integer(path).map(drop),
        Kind::Decimal => alone.parsed::<f64>(path, "A number is expected.").map(drop),
        Kind::Boolean => alone.boolean(path).map(drop),
        Kind::Timestamp => alone.time(path).map(drop),
        Kind::Blob => alone.blob(path).map(drop),
        Kind::String | Kind::Structure | Kind::List => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::facts;
    use crate::form;

    fn parameters(text: &str) -> Parameters {
        Parameters::new(&form::decode(text.as_bytes()).unwrap()).unwrap()
    }

    fn refusal(action: &str, understood: &[&str], text: &str) -> String {
        let action = &facts().actions[action];
        match parameters(text).check(action, understood) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn lists_are_read_in_the_order_of_their_indexes_with_gaps() {
        let tree = parameters(
            "Filter.10.Name=c&Filter.2.Name=b&Filter.2.Value.1=x&Filter.2.Value.3=&Filter.2.Value.12=z&Id.1=&Id.2=i",
        );
        let filters = tree.structures("Filter");
        let names: Vec<_> = filters.iter().map(|f| f.text("Name").unwrap()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(filters[0].texts("Value"), ["x", "z"]);
        assert_eq!(filters[0].raw_texts("Value"), ["x", "", "z"]);
        assert_eq!(tree.texts("Id"), ["i"]);
        assert_eq!(filters[1].path(), "Filter.10");
    }

    #[test]
    fn an_empty_value_is_absent() {
        let tree = parameters("A=&B.C=1&B=&D=&D.E=2");
        assert!(!tree.has("A") && tree.text("A").is_none());
        assert_eq!(tree.structure("B").unwrap().text("C"), Some("1"));
        assert_eq!(tree.structure("D").unwrap().text("E"), Some("2"));
        assert_eq!(tree.require("A").unwrap_err(), Error::missing("A"));
    }

    #[test]
    fn what_contradicts_itself_is_malformed() {
        for text in ["A=1&A=2", "A=1&A.B=2", "A.B=2&A=1", "A.B.C=1&A.B=2"] {
            let error = Parameters::new(&form::decode(text.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.code, "MalformedQueryString", "{text}");
        }
    }

    #[test]
    fn parameters_are_refused_by_name() {
        let understood = [
            "ImageId",
            "MinCount",
            "MaxCount",
            "NetworkInterface.N.SecurityGroupId.N",
        ];
        let refuse = |text: &str| refusal("RunInstances", &understood, text);
        assert_eq!(
            refuse("MinCount=1&MaxCount=1&Tags=&NetworkInterface="),
            "UnknownParameter: The parameter Tags is not recognized"
        );
        assert_eq!(
            refuse("MinCount=1&MaxCount=1&NetworkInterface=&DryRun=true"),
            "fine"
        );
        assert_eq!(
            refuse("MinCount=1&MaxCount=1&NetworkInterface.1.SecurityGroupId.1=sg-1"),
            "fine"
        );
        assert_eq!(
            refuse("MinCount=1"),
            "MissingParameter: The request must contain the parameter MaxCount"
        );
        assert_eq!(
            refuse("MinCount=1&MaxCount=1&CpuOptions.CoreCount=2"),
            "UnsupportedOperation: Holm does not support the parameter CpuOptions.CoreCount of RunInstances"
        );
        assert_eq!(
            refuse("MinCount=1&MaxCount=many"),
            "InvalidParameterValue: Value (many) for parameter MaxCount is invalid. A whole number is expected."
        );
        for bad in ["0", "01", "+1", "5000", "x", "-1", "99999999999"] {
            let text =
                format!("MinCount=1&MaxCount=1&NetworkInterface.{bad}.SecurityGroupId.1=sg-1");
            assert!(refuse(&text).starts_with("UnknownParameter"), "{bad}");
        }
    }
}
