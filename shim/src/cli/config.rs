//! `crisp config`: needs no server.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::args::{self, Output};
use super::error::{CliError, Result};
use super::output::Out;
use crate::config::{Config, DEFAULT_FILE, DEFAULT_TEXT};

/// Prints the default configuration, or checks one.
pub fn config(verb: args::Config, out: Out) -> Result<ExitCode> {
    match verb {
        args::Config::Default if out.format == Output::Json => out.json(&Config::default())?,
        args::Config::Default => out.text(DEFAULT_TEXT)?,
        args::Config::Check { file } => check(file.as_deref(), out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(file: Option<&Path>, out: Out) -> Result {
    let config = Config::load(file).map_err(|error| CliError::new(error.to_string()))?;
    let line = match file {
        Some(file) => format!("{}: ok", file.display()),
        None if Path::new(DEFAULT_FILE).exists() => format!("{DEFAULT_FILE}: ok"),
        None => format!("{DEFAULT_FILE}: not there, and none is needed"),
    };
    out.line(&line, &json!({ "ok": true, "config": config }))
}
