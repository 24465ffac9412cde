//! `crisp completions` and `crisp man`: made from the command line's own definition.

use std::path::Path;
use std::process::ExitCode;

use clap_complete::Shell;

use super::error::{self, CliError, Result};
use super::output::Out;

/// Prints a shell's completion script.
pub fn completions(shell: Shell, mut program: clap::Command, out: Out) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "crisp", &mut script);
    out.text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all manual pages, or prints the first one.
pub fn man(dir: Option<&Path>, program: clap::Command, out: Out) -> Result<ExitCode> {
    match dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(program).render(&mut page).map_err(error::output)?;
            out.text(&String::from_utf8_lossy(&page))?;
        }
        Some(dir) => {
            let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(program, dir));
            written.map_err(|error| CliError::new(format!("write manual pages to {}: {error}", dir.display())))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
