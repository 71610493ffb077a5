//! A source file as tokens and paths.
//!
//! Not a parser: comments, strings and character literals are dropped, the rest becomes
//! identifiers and single punctuation characters. That is enough to find paths, nested `use`
//! trees, `mod` declarations and what `#[cfg(test)]` covers.

use std::collections::BTreeSet;

/// An identifier or one punctuation character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
    /// Inside an item under `#[cfg(test)]`.
    pub in_test: bool,
    /// How many inline modules enclose it.
    pub inline_modules: usize,
}

/// A path such as `crate::engine::Options`; a `use` tree gives one for each leaf.
#[derive(Debug)]
pub struct PathUse {
    pub segments: Vec<String>,
    pub line: usize,
    pub in_test: bool,
    pub inline_modules: usize,
}

impl PathUse {
    /// Whether `needle` (parts between `::`) occurs in the path, side by side.
    pub fn contains(&self, needle: &str) -> bool {
        let needle: Vec<&str> = needle.split("::").collect();
        self.segments.windows(needle.len()).any(|window| window == needle)
    }
}

pub struct SourceFile {
    /// Relative to the crate's root, `/` between parts.
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
    pub paths: Vec<PathUse>,
    /// Only tests compile it.
    pub test_only: bool,
}

impl SourceFile {
    pub fn new(path: &str, text: &str) -> Self {
        let mut tokens = tokenize(text);
        mark_tests(&mut tokens);
        mark_inline_modules(&mut tokens);
        let paths = paths(&tokens);
        let test_only = path.ends_with("/tests.rs") || path.contains("/tests/");
        Self { path: path.to_owned(), text: text.to_owned(), tokens, paths, test_only }
    }

    /// The module path below `src`, without the file's own `mod`: `engine/vfs/os.rs` gives
    /// `[engine, vfs, os]`, `lib.rs` and `main.rs` give nothing.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let path = path.strip_suffix(".rs").unwrap_or(path);
        let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// `(name, only in tests)` of each `mod name;`.
    fn declared_modules(&self) -> Vec<(String, bool)> {
        self.tokens
            .windows(3)
            .filter(|w| w[0].text == "mod" && w[2].text == ";")
            .map(|w| (w[1].text.clone(), w[0].in_test))
            .collect()
    }
}

/// Marks the files that a `#[cfg(test)] mod name;` declares, and all below them.
pub fn mark_test_files(files: &mut [SourceFile]) {
    let mut roots = BTreeSet::new();
    for file in files.iter() {
        for (name, _) in file.declared_modules().into_iter().filter(|(_, in_test)| *in_test) {
            let mut module = file.module();
            module.push(name);
            roots.insert(module);
        }
    }
    for file in files.iter_mut() {
        let module = file.module();
        file.test_only |= roots.iter().any(|root| module.starts_with(root));
    }
}

/// Files that no `mod name;` leads to: nobody compiles them.
pub fn unreached(files: &[SourceFile]) -> Vec<String> {
    let mut declared = BTreeSet::new();
    for file in files {
        for (name, _) in file.declared_modules() {
            let mut module = file.module();
            module.push(name);
            declared.insert(module);
        }
    }
    files
        .iter()
        .filter(|file| !file.module().is_empty() && !declared.contains(&file.module()))
        .map(|file| file.path.clone())
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Identifiers and punctuation of `text`, without comments and literals.
pub fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        let next = chars.get(at + 1).copied();
        let mut token = None;
        match chars[at] {
            '/' if next == Some('/') => at = line_end(&chars, at),
            '/' if next == Some('*') => at = block_comment_end(&chars, at),
            '"' => at = string_end(&chars, at),
            '\'' => at = quote_end(&chars, at),
            c if is_word(c) => {
                while at < chars.len() && is_word(chars[at]) {
                    at += 1;
                }
                let word: String = chars[start..at].iter().collect();
                match raw_string_end(&word, &chars, at) {
                    Some(end) => at = end,
                    None => token = Some(word),
                }
            }
            c => {
                at += 1;
                token = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        if let Some(text) = token {
            tokens.push(Token { text, line, in_test: false, inline_modules: 0 });
        }
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn line_end(chars: &[char], from: usize) -> usize {
    (from..chars.len()).find(|at| chars[*at] == '\n').unwrap_or(chars.len())
}

/// Block comments nest.
fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    chars.len()
}

/// From the opening quote to behind the closing one.
fn string_end(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// A character literal, or the quote alone where it starts a lifetime.
fn quote_end(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => {
            // The escaped character may itself be a quote.
            let close = (from + 3..chars.len()).find(|at| chars[*at] == '\'');
            close.map_or(chars.len(), |at| at + 1)
        }
        (Some(_), Some('\'')) => from + 3,
        _ => from + 1,
    }
}

/// The end of `r"..."`, `br#"..."#` and the like, when `word` is the prefix of one.
fn raw_string_end(word: &str, chars: &[char], at: usize) -> Option<usize> {
    if !matches!(word, "r" | "br" | "cr") {
        return None;
    }
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let body = at + hashes + 1;
    let closes = |end: &usize| {
        chars[*end] == '"'
            && chars[*end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    Some((body..chars.len()).find(closes).map_or(chars.len(), |end| end + 1 + hashes))
}

fn words(tokens: &[Token], from: usize, count: usize) -> Vec<&str> {
    tokens[from..].iter().take(count).map(|token| token.text.as_str()).collect()
}

/// Marks the item behind each `#[cfg(test)]` and `#[cfg(all(test, ...))]`.
fn mark_tests(tokens: &mut [Token]) {
    for at in 0..tokens.len() {
        let plain = words(tokens, at, 7) == ["#", "[", "cfg", "(", "test", ")", "]"];
        let all = words(tokens, at, 7) == ["#", "[", "cfg", "(", "all", "(", "test"];
        if plain || all {
            let end = item_end(tokens, at);
            for token in &mut tokens[at..end] {
                token.in_test = true;
            }
        }
    }
}

/// The end of the item whose attributes start at `from`: its `;` or its closing brace.
fn item_end(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            "}" => {
                depth = depth.saturating_sub(1);
                // A `use a::{b, c};` ends at its semicolon.
                let next = tokens.get(at + 1).map(|token| token.text.as_str());
                if depth == 0 && next != Some(";") {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

fn mark_inline_modules(tokens: &mut [Token]) {
    let mut braces: Vec<bool> = Vec::new();
    for at in 0..tokens.len() {
        match tokens[at].text.as_str() {
            "{" => braces.push(at >= 2 && tokens[at - 2].text == "mod"),
            "}" => {
                braces.pop();
            }
            _ => {}
        }
        tokens[at].inline_modules = braces.iter().filter(|is_module| **is_module).count();
    }
}

fn is_ident(token: &Token) -> bool {
    token.text.chars().next().is_some_and(is_word)
}

/// Whether `::` stands at `at`.
fn is_join(tokens: &[Token], at: usize) -> bool {
    words(tokens, at.min(tokens.len()), 2) == [":", ":"]
}

fn paths(tokens: &[Token]) -> Vec<PathUse> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_ident(&tokens[at]) {
            at = path(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads the path that starts with the identifier at `at`; returns the first token behind it.
fn path(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<PathUse>) -> usize {
    let first = &tokens[at];
    let mut segments = prefix.to_vec();
    loop {
        segments.push(tokens[at].text.clone());
        at += 1;
        if !is_join(tokens, at) {
            break;
        }
        match tokens.get(at + 2) {
            Some(token) if is_ident(token) => at += 2,
            Some(token) if token.text == "{" => return tree(tokens, at + 3, &segments, found),
            _ => break,
        }
    }
    found.push(PathUse {
        segments,
        line: first.line,
        in_test: first.in_test,
        inline_modules: first.inline_modules,
    });
    at
}

/// Reads the inside of `prefix::{...}` from behind its brace to behind the closing one.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<PathUse>) -> usize {
    while at < tokens.len() && tokens[at].text != "}" {
        if is_ident(&tokens[at]) {
            at = path(tokens, at, prefix, found);
        } else {
            at += 1;
        }
    }
    at + 1
}

#[test]
fn comments_strings_and_literals_are_not_code() {
    let text = "a /* b /* c */ d */ \"e \\\" f\" r#\"g \" h\"# 'i' '\\'' &'k l // m\nn";
    let words: Vec<_> = tokenize(text).into_iter().map(|t| (t.text, t.line)).collect();
    let expected = [("a", 1), ("&", 1), ("k", 1), ("l", 1), ("n", 2)];
    assert_eq!(words, expected.map(|(text, line)| (text.to_owned(), line)));
}

#[test]
fn a_use_tree_gives_each_of_its_leaves() {
    let file = SourceFile::new("src/x.rs", "use crate::{a::{b, c as d}, e};\nfn f() { g::h() }");
    let all: Vec<_> = file.paths.iter().map(|path| path.segments.join("::")).collect();
    for expected in ["crate::a::b", "crate::a::c", "crate::e", "g::h"] {
        assert!(all.iter().any(|path| path == expected), "{expected} is not in {all:?}");
    }
}

#[test]
fn what_stands_under_cfg_test_is_marked_and_nothing_behind_it() {
    let text = "#[cfg(test)]\nmod tests { fn in_test() {} }\nfn outside() {}\n\
                #[cfg(test)]\nuse a::{in_test};\nfn outside() {}\n\
                #[cfg(not(test))]\nfn outside() {}";
    let file = SourceFile::new("src/x.rs", text);
    for token in &file.tokens {
        assert!(token.text != "in_test" || token.in_test, "line {} is not marked", token.line);
        assert!(token.text != "outside" || !token.in_test, "line {} is marked", token.line);
    }
}

#[test]
fn files_of_a_test_module_are_test_files_and_lost_files_are_found() {
    let mut files = [
        SourceFile::new("src/lib.rs", "mod a;"),
        SourceFile::new("src/a/mod.rs", "#[cfg(test)]\nmod harness;"),
        SourceFile::new("src/a/harness.rs", ""),
        SourceFile::new("src/a/lost.rs", ""),
    ];
    mark_test_files(&mut files);
    assert_eq!(files.each_ref().map(|file| file.test_only), [false, false, true, false]);
    assert_eq!(unreached(&files), ["src/a/lost.rs"]);
}
