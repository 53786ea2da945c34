//! The language of `grub.cfg` (GRUB manual, "Writing full configuration
//! files"): from text to statements.

use std::rc::Rc;

/// Longest script, in bytes. Debian's with twenty kernels has 40 KiB.
pub const LONGEST: usize = 1 << 20;
/// Deepest nesting of blocks.
const DEEPEST: usize = 48;

/// Statements in order.
pub type Block = Rc<Vec<Statement>>;

/// A statement.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command with its arguments.
    Command(Vec<Word>),
    /// `! statement`.
    Not(Box<Statement>),
    /// `if` and `elif` with their blocks, and `else`.
    If(Vec<(Block, Block)>, Option<Block>),
    /// `while`, or `until`.
    While {
        /// What is looked at before each round.
        condition: Block,
        /// Whether it ends when the condition holds.
        until: bool,
        /// The round.
        body: Block,
    },
    /// `for NAME in WORDS`.
    For {
        /// The variable.
        variable: String,
        /// Its values.
        words: Vec<Word>,
        /// The round.
        body: Block,
    },
    /// `function NAME { … }`.
    Function(String, Block),
    /// A command with a block: `menuentry`, `submenu`.
    Menu(Vec<Word>, Block),
}

/// A word: pieces without a space between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(pub Vec<Piece>);

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is; quoted text stays one word even if it is empty.
    Text(String),
    /// A variable's value; outside quotes its spaces separate words.
    Variable(String, bool),
}

impl Word {
    /// The text of a word without variables and quotes; for keywords.
    fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// Why a script cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ScriptError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A word, and whether it could be a keyword (no quote, no escape in it).
    Word(Word, bool),
    /// End of a command: line feed or semicolon.
    End,
    Open,
    Close,
}

/// Understands a script.
///
/// # Errors
/// [`ScriptError`], at the first fault.
pub fn parse(text: &str) -> Result<Block, ScriptError> {
    if text.len() > LONGEST {
        return Err(ScriptError {
            line: 1,
            reason: format!("the script has more than {LONGEST} bytes"),
        });
    }
    let tokens = Lexer::new(text).tokens()?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let block = parser.block(&[])?;
    match parser.peek() {
        None => Ok(block),
        Some(_) => Err(parser.error("something is closed that was not opened")),
    }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    tokens: Vec<(Token, usize)>,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars().peekable(),
            line: 1,
            tokens: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn tokens(mut self) -> Result<Vec<(Token, usize)>, ScriptError> {
        while let Some(&c) = self.rest.peek() {
            match c {
                '\n' | ';' => {
                    self.push(Token::End);
                    self.next();
                }
                c if c.is_whitespace() => {
                    self.next();
                }
                '{' => {
                    self.next();
                    self.push(Token::Open);
                }
                '}' => {
                    self.next();
                    self.push(Token::Close);
                }
                '#' => {
                    while self.rest.peek().is_some_and(|c| *c != '\n') {
                        self.next();
                    }
                }
                _ => self.word()?,
            }
        }
        Ok(self.tokens)
    }

    fn word(&mut self) -> Result<(), ScriptError> {
        let mut word = Word::default();
        let mut text = String::new();
        let (mut plain, mut any) = (true, false);
        while let Some(&c) = self.rest.peek() {
            if c.is_whitespace() || matches!(c, ';' | '{' | '}') {
                break;
            }
            self.next();
            match c {
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(c) => {
                        (plain, any) = (false, true);
                        text.push(c);
                    }
                },
                '\'' => {
                    (plain, any) = (false, true);
                    self.single(&mut text)?;
                }
                '"' => {
                    (plain, any) = (false, true);
                    self.double(&mut word, &mut text)?;
                }
                '$' => {
                    any = true;
                    self.variable(&mut word, &mut text, false)?;
                }
                c => {
                    any = true;
                    text.push(c);
                }
            }
        }
        if !any {
            return Ok(());
        }
        if !text.is_empty() || word.0.is_empty() || !plain {
            word.0.push(Piece::Text(text));
        }
        self.push(Token::Word(word, plain));
        Ok(())
    }

    fn single(&mut self, text: &mut String) -> Result<(), ScriptError> {
        let line = self.line;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => text.push(c),
                None => return Err(unclosed(line, "a quote")),
            }
        }
    }

    fn double(&mut self, word: &mut Word, text: &mut String) -> Result<(), ScriptError> {
        let line = self.line;
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    Some('\n') => {}
                    Some(c @ ('$' | '"' | '\\')) => text.push(c),
                    Some(c) => text.extend(['\\', c]),
                    None => return Err(unclosed(line, "a quote")),
                },
                Some('$') => self.variable(word, text, true)?,
                Some(c) => text.push(c),
                None => return Err(unclosed(line, "a quote")),
            }
        }
    }

    /// What follows a dollar sign; one that names nothing is text.
    fn variable(
        &mut self,
        word: &mut Word,
        text: &mut String,
        quoted: bool,
    ) -> Result<(), ScriptError> {
        let mut name = String::new();
        let line = self.line;
        match self.rest.peek() {
            Some('{') => {
                self.next();
                loop {
                    match self.next() {
                        Some('}') => break,
                        Some(c) if c != '\n' => name.push(c),
                        _ => return Err(unclosed(line, "${")),
                    }
                }
            }
            Some('?' | '@' | '*' | '#') => name.extend(self.next()),
            Some(c) if c.is_ascii_digit() => {
                while self.rest.peek().is_some_and(char::is_ascii_digit) {
                    name.extend(self.next());
                }
            }
            _ => {
                let part = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
                while self.rest.peek().is_some_and(part) {
                    name.extend(self.next());
                }
            }
        }
        if name.is_empty() {
            // `$"text"` is a translated text.
            if quoted || self.rest.peek() != Some(&'"') {
                text.push('$');
            }
            return Ok(());
        }
        if !text.is_empty() {
            word.0.push(Piece::Text(std::mem::take(text)));
        }
        word.0.push(Piece::Variable(name, quoted));
        Ok(())
    }
}

fn unclosed(line: usize, what: &str) -> ScriptError {
    ScriptError {
        line,
        reason: format!("{what} is not closed"),
    }
}

struct Parser<'a> {
    tokens: &'a [(Token, usize)],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn error(&self, reason: &str) -> ScriptError {
        let here = self.tokens.get(self.at).or(self.tokens.last());
        ScriptError {
            line: here.map_or(1, |(_, line)| *line),
            reason: reason.to_owned(),
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    /// The keyword that comes next, if it is one.
    fn keyword(&self) -> Option<&str> {
        match self.peek()? {
            Token::Word(word, true) => word.plain(),
            _ => None,
        }
    }

    fn take_keyword(&mut self, wanted: &str) -> Result<(), ScriptError> {
        self.skip_ends();
        if self.keyword() != Some(wanted) {
            return Err(self.error(&format!("`{wanted}` is missing")));
        }
        self.at += 1;
        Ok(())
    }

    fn take(&mut self, wanted: &Token, name: &str) -> Result<(), ScriptError> {
        self.skip_ends();
        if self.peek() != Some(wanted) {
            return Err(self.error(&format!("{name} is missing")));
        }
        self.at += 1;
        Ok(())
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    /// Statements up to one of these keywords, a closing brace or the end.
    fn block(&mut self, until: &[&str]) -> Result<Block, ScriptError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.error("blocks are nested too deeply"));
        }
        let mut statements = Vec::new();
        loop {
            self.skip_ends();
            let ends = match self.peek() {
                None | Some(Token::Close) => true,
                Some(_) => self.keyword().is_some_and(|k| until.contains(&k)),
            };
            if ends {
                self.depth -= 1;
                return Ok(Rc::new(statements));
            }
            statements.push(self.statement()?);
        }
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        match self.keyword() {
            Some("if") => self.condition(),
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                self.at += 1;
                let condition = self.block(&["do"])?;
                let body = self.round()?;
                Ok(Statement::While {
                    condition,
                    until,
                    body,
                })
            }
            Some("for") => {
                self.at += 1;
                let variable = self.name("a variable")?;
                self.take_keyword("in")?;
                let words = self.words();
                let body = self.round()?;
                Ok(Statement::For {
                    variable,
                    words,
                    body,
                })
            }
            Some("function") => {
                self.at += 1;
                let name = self.name("the function's name")?;
                Ok(Statement::Function(name, self.braces()?))
            }
            Some("!") => {
                self.at += 1;
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(self.error("blocks are nested too deeply"));
                }
                let negated = self.statement()?;
                self.depth -= 1;
                Ok(Statement::Not(Box::new(negated)))
            }
            Some(word @ ("then" | "elif" | "else" | "fi" | "do" | "done")) => {
                let reason = format!("`{word}` belongs to nothing");
                Err(self.error(&reason))
            }
            _ => self.command(),
        }
    }

    fn command(&mut self) -> Result<Statement, ScriptError> {
        let words = self.words();
        if words.is_empty() {
            return Err(self.error("a command is missing"));
        }
        if self.peek() == Some(&Token::Open) {
            return Ok(Statement::Menu(words, self.braces()?));
        }
        Ok(Statement::Command(words))
    }

    fn condition(&mut self) -> Result<Statement, ScriptError> {
        let mut arms = Vec::new();
        let mut otherwise = None;
        self.at += 1;
        loop {
            let condition = self.block(&["then"])?;
            self.take_keyword("then")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            match self.keyword() {
                Some("elif") => self.at += 1,
                Some("else") => {
                    self.at += 1;
                    otherwise = Some(self.block(&["fi"])?);
                    break;
                }
                _ => break,
            }
        }
        self.take_keyword("fi")?;
        Ok(Statement::If(arms, otherwise))
    }

    fn round(&mut self) -> Result<Block, ScriptError> {
        self.take_keyword("do")?;
        let body = self.block(&["done"])?;
        self.take_keyword("done")?;
        Ok(body)
    }

    fn braces(&mut self) -> Result<Block, ScriptError> {
        self.take(&Token::Open, "`{`")?;
        let body = self.block(&[])?;
        self.take(&Token::Close, "`}`")?;
        Ok(body)
    }

    fn name(&mut self, what: &str) -> Result<String, ScriptError> {
        match self.peek() {
            Some(Token::Word(word, _)) if word.plain().is_some() => {
                let name = word.plain().unwrap_or_default().to_owned();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.error(&format!("{what} is missing"))),
        }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word, _)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<Vec<Piece>> {
        match parse(text).unwrap().first() {
            Some(Statement::Command(words)) => words.iter().map(|w| w.0.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn text(s: &str) -> Piece {
        Piece::Text(s.into())
    }

    #[test]
    fn words_quotes_and_variables() {
        assert_eq!(
            words("linux /vm\\ linuz 'a $b' \"x ${y} \\$z\" $w\"\" # gone"),
            [
                vec![text("linux")],
                vec![text("/vm linuz")],
                vec![text("a $b")],
                vec![text("x "), Piece::Variable("y".into(), true), text(" $z")],
                vec![Piece::Variable("w".into(), false), text("")],
            ]
        );
        assert_eq!(words("a\\\nb c#d"), [vec![text("ab")], vec![text("c#d")]]);
        assert_eq!(
            words("echo $ 5$"),
            [vec![text("echo")], vec![text("$")], vec![text("5$")]]
        );
    }

    #[test]
    fn faults_are_named_with_their_line() {
        for (script, line, word) in [
            ("echo 'a\nb", 1, "quote"),
            ("\nif true; then\n", 3, "fi"),
            ("menuentry x {\n linux y\n", 3, "}"),
            ("\n}\n", 2, "not opened"),
            ("fi", 1, "belongs to nothing"),
            ("for in x; do true; done", 1, "`in`"),
            ("echo ${x", 1, "${"),
        ] {
            let error = parse(script).unwrap_err();
            assert!(error.reason.contains(word), "{script:?}: {error}");
            assert!(error.line <= line, "{script:?}: {error}");
        }
        let deep = "if true; then ".repeat(1000);
        assert!(parse(&deep).unwrap_err().reason.contains("deep"));
        let deep = "! ".repeat(100_000) + "true";
        assert!(parse(&deep).unwrap_err().reason.contains("deep"));
        let deep = "menuentry x {".repeat(50_000);
        assert!(parse(&deep).unwrap_err().reason.contains("deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in "[ a-z\\n;{}$'\"\\\\#!/=\\[\\]-]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_sequence_of_keywords_is_understood_or_refused(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "if", "then", "elif", "else", "fi", "while", "until", "do", "done", "for",
                    "in", "function", "menuentry", "submenu", "{", "}", ";", "\n", "!", "x", "$y",
                    "'z'", "[", "]",
                ]),
                0..60,
            )
        ) {
            let _ = parse(&words.join(" "));
        }
    }
}
