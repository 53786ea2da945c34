//! Response documents: elements in the order in which they were added, no
//! attributes but the namespace.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::time::SystemTime;

/// Namespace of EC2's responses.
pub const EC2_NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";
/// Namespace of STS's responses.
pub const STS_NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// An element with text or with children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    name: Cow<'static, str>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    /// An empty element.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            text: String::new(),
            children: Vec::new(),
        }
    }

    /// An empty `item`, the element of EC2's lists.
    #[must_use]
    pub fn item() -> Self {
        Self::new("item")
    }

    /// An element with text only.
    pub fn leaf(name: impl Into<Cow<'static, str>>, value: impl Display) -> Self {
        let mut element = Self::new(name);
        element.text = value.to_string();
        element
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.text
    }

    /// Its children.
    #[must_use]
    pub fn children(&self) -> &[Element] {
        &self.children
    }

    /// Its children, taken out.
    #[must_use]
    pub fn into_children(self) -> Vec<Element> {
        self.children
    }

    /// With one more child that has text.
    #[must_use]
    pub fn text(self, name: &'static str, value: impl Display) -> Self {
        self.child(Element::leaf(name, value))
    }

    /// With one more child that has text, if there is a value.
    #[must_use]
    pub fn option(self, name: &'static str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// With a moment, in RFC 3339, UTC, with milliseconds.
    #[must_use]
    pub fn time(self, name: &'static str, at: SystemTime) -> Self {
        self.text(name, time(at))
    }

    /// With one more child.
    #[must_use]
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// With a list: a child of that name with these items; empty as well.
    #[must_use]
    pub fn list(self, name: &'static str, items: impl IntoIterator<Item = Element>) -> Self {
        let mut list = Element::new(name);
        list.children.extend(items);
        self.child(list)
    }

    /// With children added at the end.
    #[must_use]
    pub fn extend(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The document with this root, in that namespace if one is named.
    #[must_use]
    pub fn document(&self, namespace: Option<&str>) -> String {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        self.write(&mut text, namespace);
        text.push('\n');
        text
    }

    fn write(&self, into: &mut String, namespace: Option<&str>) {
        into.push('<');
        into.push_str(&self.name);
        if let Some(namespace) = namespace {
            // A constant of this module: nothing to escape. Writing to a
            // string cannot fail.
            let _ = write!(into, " xmlns=\"{namespace}\"");
        }
        if self.text.is_empty() && self.children.is_empty() {
            into.push_str("/>");
            return;
        }
        into.push('>');
        escape(&self.text, into);
        for child in &self.children {
            child.write(into, None);
        }
        into.push_str("</");
        into.push_str(&self.name);
        into.push('>');
    }
}

/// A moment as EC2 writes it.
#[must_use]
pub fn time(at: SystemTime) -> String {
    // humantime refuses what is after the year 9999 by an error of Display.
    let latest = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(at.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// Text as XML 1.0 allows it: what it cannot say at all becomes U+FFFD, and
/// carriage returns are kept from becoming line feeds.
fn escape(text: &str, into: &mut String) {
    for character in text.chars() {
        match character {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '\r' => into.push_str("&#13;"),
            '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => {
                into.push(character);
            }
            _ => into.push('\u{fffd}'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quick_xml::events::Event;

    /// The text of the only element `a` of a document, by another's parser.
    fn read_back(document: &str) -> String {
        let mut reader = quick_xml::Reader::from_str(document);
        let mut text = String::new();
        let mut inside = false;
        loop {
            match reader.read_event().expect("well-formed") {
                Event::Start(start) if start.name().as_ref() == b"a" => inside = true,
                Event::End(end) if end.name().as_ref() == b"a" => return text,
                Event::Empty(_) | Event::Eof => return text,
                Event::Text(part) if inside => text.push_str(&part.decode().expect("UTF-8")),
                Event::GeneralRef(part) if inside => {
                    let name = part.decode().expect("UTF-8");
                    match part.resolve_char_ref().expect("a character") {
                        Some(character) => text.push(character),
                        None => text.push_str(match &*name {
                            "amp" => "&",
                            "lt" => "<",
                            "gt" => ">",
                            other => panic!("{other}"),
                        }),
                    }
                }
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "[\\x20-\\x7e\\t\\n\\r\u{80}-\u{d7ff}\u{10000}-\u{10ffff}]*") {
            let document = Element::new("r").text("a", &text).document(Some(EC2_NAMESPACE));
            prop_assert_eq!(read_back(&document), text);
        }

        #[test]
        fn what_xml_cannot_say_is_replaced(text in "\\PC*[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\u{fffe}\u{ffff}]") {
            let document = Element::new("r").text("a", &text).document(None);
            let back = read_back(&document);
            prop_assert!(back.ends_with('\u{fffd}'), "{:?}", back);
        }
    }

    #[test]
    fn lists_and_times() {
        let response = Element::new("R")
            .text("requestId", 7)
            .list(
                "things",
                [Element::item().text("on", true), Element::item()],
            )
            .time(
                "at",
                SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500),
            )
            .option("none", None::<u8>)
            .list("empty", []);
        assert_eq!(
            response.document(Some(EC2_NAMESPACE)),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <R xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>7</requestId>\
             <things><item><on>true</on></item><item/></things>\
             <at>1970-01-01T00:00:01.500Z</at><empty/></R>\n"
        );
    }
}
