//! `holm key` and `holm token`.

use std::path::PathBuf;

use api::resources::account::{AccessKeyView, MadeAccessKey};
use api::resources::key_pairs::{KeyPairView, MadeKeyPair};
use api::resources::tokens::{MadeToken, TokenView};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::client::{Client, PlaneError};
use super::{env, finish, id};
use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output, age, or_none};

/// `holm key`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Makes a key pair; its private key is written to a file, and kept nowhere else
    ///
    /// Example: holm key create mine
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(Create),
    /// Imports a public key
    ///
    /// Example: holm key import me ~/.ssh/id_ed25519.pub
    #[command(after_help = exit_code::PLANE_HELP)]
    Import(Import),
    /// Lists key pairs
    ///
    /// Example: holm key ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Removes a key pair; machines that have its key keep it
    ///
    /// Example: holm key rm mine
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::keys())))]
    Rm(Name),
    /// Makes, lists and removes keys with which programs sign EC2 requests
    ///
    /// Example: holm key access create
    #[command(subcommand)]
    Access(Access),
}

/// `holm key create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Kind of key
    #[arg(long = "type", value_enum, default_value_t = Kind::Ed25519)]
    pub kind: Kind,

    /// Where the private key goes (--file ~/.ssh/mine); NAME.pem here unless given
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// Ed25519
    Ed25519,
    /// RSA of 2048 bits
    Rsa,
}

/// `holm key import`.
#[derive(Args, Debug)]
pub struct Import {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// File with the public key, as ssh-keygen writes it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// A name or an id.
#[derive(Args, Debug)]
pub struct Name {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `holm key access`.
#[derive(Subcommand, Debug)]
pub enum Access {
    /// Makes an access key; its secret is shown once
    ///
    /// Example: holm key access create --user ci
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(NewAccess),
    /// Lists access keys
    ///
    /// Example: holm key access ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Removes an access key: requests signed with it are refused from now on
    ///
    /// Example: holm key access rm AKIA…
    #[command(after_help = exit_code::PLANE_HELP)]
    Rm(Name),
}

/// `holm key access create`.
#[derive(Args, Debug)]
pub struct NewAccess {
    /// Who gets it
    #[arg(long, value_name = "USER", default_value = "root")]
    pub user: String,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Does it, and returns the exit status.
pub fn run(command: &Command) -> u8 {
    let client = Client::new();
    finish(match command {
        Command::Create(arguments) => create(&client, arguments),
        Command::Import(arguments) => import(&client, arguments),
        Command::Ls(output) => list(&client, *output),
        Command::Rm(name) => id(&client, "/v1/key-pairs", "key pair", "key-", &name.name)
            .and_then(|id| client.call("DELETE", &format!("/v1/key-pairs/{id}"), None))
            .map(drop),
        Command::Access(command) => access(&client, command),
    })
}

fn create(client: &Client, arguments: &Create) -> Result<(), PlaneError> {
    let usual = || PathBuf::from(format!("{}.pem", arguments.name.replace('/', "_")));
    let file = arguments.file.clone().unwrap_or_else(usual);
    if file.exists() {
        return Err(PlaneError::File(format!(
            "{} is there already; choose another file with --file",
            file.display()
        )));
    }
    let kind = match arguments.kind {
        Kind::Ed25519 => "ed25519",
        Kind::Rsa => "rsa",
    };
    let body = json!({"name": arguments.name, "kind": kind});
    let made: MadeKeyPair = client.ask("POST", "/v1/key-pairs", Some(&body))?;
    let private = made.private_key.unwrap_or_default();
    env::secret(&file, private.as_bytes())?;
    terminal::say(&format!(
        "{} is made; its private key is in {}, and nowhere else",
        arguments.name,
        file.display()
    ));
    Ok(())
}

fn import(client: &Client, arguments: &Import) -> Result<(), PlaneError> {
    let file = arguments.file.display();
    let key = std::fs::read_to_string(&arguments.file)
        .map_err(|e| PlaneError::File(format!("reading {file}: {e}")))?;
    let body = json!({"name": arguments.name, "public_key": key.trim()});
    let made: MadeKeyPair = client.ask("POST", "/v1/key-pairs", Some(&body))?;
    terminal::say(&format!(
        "{} ({}) is imported",
        made.pair.name, made.pair.fingerprint
    ));
    Ok(())
}

fn list(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<KeyPairView> = client.all("/v1/key-pairs", "")?;
    form::print(output, &all, || {
        let rows = all.iter().map(|k| {
            let k = k.clone();
            [k.name, k.id, k.kind, k.fingerprint, age(&k.created)]
        });
        form::table(["NAME", "ID", "TYPE", "FINGERPRINT", "AGE"], rows)
    });
    Ok(())
}

fn access(client: &Client, command: &Access) -> Result<(), PlaneError> {
    match command {
        Access::Create(new) => {
            let body = json!({"user": new.user});
            let made: MadeAccessKey = client.ask("POST", "/v1/access-keys", Some(&body))?;
            form::print(new.output, &made, || {
                form::fields(&[
                    ("access key id", made.key.id.clone()),
                    ("secret access key", made.secret.clone()),
                ])
            });
        }
        Access::Ls(output) => {
            let all: Vec<AccessKeyView> = client.all("/v1/access-keys", "")?;
            form::print(*output, &all, || {
                let rows = all.iter().map(|k| {
                    let active = if k.active { "yes" } else { "no" };
                    [k.id.clone(), k.user.clone(), active.into(), age(&k.created)]
                });
                form::table(["ID", "USER", "ACTIVE", "AGE"], rows)
            });
        }
        Access::Rm(name) => {
            let path = format!("/v1/access-keys/{}", super::client::quoted(&name.name));
            client.call("DELETE", &path, None)?;
        }
    }
    Ok(())
}

/// `holm token`.
#[derive(Subcommand, Debug)]
pub enum Tokens {
    /// Makes a token for the REST interface's TCP port; it is shown once
    ///
    /// Example: holm token create dashboard
    #[command(after_help = exit_code::PLANE_HELP)]
    Create(NewToken),
    /// Lists tokens
    ///
    /// Example: holm token ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Removes a token: its bearer is no longer let in
    ///
    /// Example: holm token rm 0123456789abcdef
    #[command(after_help = exit_code::PLANE_HELP)]
    Rm(Name),
}

/// `holm token create`.
#[derive(Args, Debug)]
pub struct NewToken {
    /// What it is called
    #[arg(value_name = "NAME", default_value = "")]
    pub name: String,

    /// Its bearer may change things, not only look
    #[arg(long)]
    pub admin: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Does it, and returns the exit status.
pub fn tokens(command: &Tokens) -> u8 {
    finish(try_tokens(&Client::new(), command))
}

fn try_tokens(client: &Client, command: &Tokens) -> Result<(), PlaneError> {
    match command {
        Tokens::Create(new) => {
            let role = if new.admin { "admin" } else { "reader" };
            let body = json!({"name": new.name, "role": role});
            let made: MadeToken = client.ask("POST", "/v1/tokens", Some(&body))?;
            form::print(new.output, &made, || format!("{}\n", made.secret));
        }
        Tokens::Ls(output) => {
            let all: Vec<TokenView> = client.all("/v1/tokens", "")?;
            form::print(*output, &all, || {
                let rows = all.iter().map(|t| {
                    let role = format!("{:?}", t.role).to_lowercase();
                    let until = or_none(t.expires.as_ref());
                    [t.id.clone(), t.name.clone(), role, until, age(&t.created)]
                });
                form::table(["ID", "NAME", "ROLE", "UNTIL", "AGE"], rows)
            });
        }
        Tokens::Rm(name) => {
            let path = format!("/v1/tokens/{}", super::client::quoted(&name.name));
            client.call("DELETE", &path, None)?;
        }
    }
    Ok(())
}
