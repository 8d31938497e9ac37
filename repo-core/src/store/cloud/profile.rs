//! Profiles of the AWS tools: `~/.aws/credentials` and `~/.aws/config`, as far as keys, region and endpoint go.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result, ResultExt};

/// The longest profile file that is read, in bytes.
const FILE_LEN_MAX: u64 = 1024 * 1024;

type Section = BTreeMap<String, String>;

/// What the files say under one name.
#[derive(Debug, Default)]
pub(super) struct Profile {
    name: String,
    values: Section,
}

impl Profile {
    /// Reads the profile that the settings of the environment name, or `default`. Files that are missing say nothing.
    ///
    /// # Errors
    /// `NotFound` when a profile was named and is in no file; `Invalid` when a file is malformed; `Io`.
    pub(super) fn read(environment: &[(String, String)], home: Option<&Path>) -> Result<Self> {
        let set = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let file = |variable: &str, usual: &str| {
            set(variable).map(PathBuf::from).or_else(|| home.map(|home| home.join(".aws").join(usual)))
        };
        let config = sections(file("aws_config_file", "config").as_deref())?;
        let credentials = sections(file("aws_shared_credentials_file", "credentials").as_deref())?;
        let named = set("aws_profile");
        let name = named.unwrap_or("default");
        let in_config =
            config.get(&format!("profile {name}")).or_else(|| config.get(name).filter(|_| name == "default"));
        let in_credentials = credentials.get(name);
        if named.is_some() && in_config.is_none() && in_credentials.is_none() {
            let text = format!("there is no profile {name:?} in the AWS configuration files");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let mut values = in_config.cloned().unwrap_or_default();
        if let Some(services) = values.get("services").and_then(|services| config.get(&format!("services {services}")))
        {
            values.extend(services.get("s3.endpoint_url").map(|url| ("endpoint_url".to_owned(), url.clone())));
        }
        values.extend(in_credentials.cloned().unwrap_or_default());
        Ok(Self { name: name.to_owned(), values })
    }

    /// The profile's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Adds what the environment leaves open. A key comes whole from one place.
    pub(super) fn fill(&self, settings: &mut Vec<(String, String)>) {
        let has = |settings: &[(String, String)], names: &[&str]| {
            settings.iter().any(|(known, _)| names.contains(&known.as_str()))
        };
        let own_key = ["aws_access_key_id", "aws_secret_access_key"];
        let take = |settings: &mut Vec<(String, String)>, name: &str, key: &str| {
            settings.extend(self.values.get(key).map(|value| (name.to_owned(), value.clone())));
        };
        if !has(settings, &own_key) {
            for key in ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"] {
                take(settings, key, key);
            }
        }
        if !has(settings, &["aws_region", "aws_default_region"]) {
            take(settings, "aws_region", "region");
        }
        if !has(settings, &["aws_endpoint_url", "aws_endpoint", "aws_endpoint_url_s3"]) {
            take(settings, "aws_endpoint_url", "endpoint_url");
        }
    }

    /// Whether the profile says that the machine itself has a role.
    pub(super) fn uses_instance_metadata(&self) -> bool {
        self.values.get("credential_source").is_some_and(|source| source == "Ec2InstanceMetadata")
    }

    /// Where the profile takes credentials from that this program cannot follow.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        let ways = [
            ("credential_process", "another program (credential_process)"),
            ("sso_session", "a sign-in (sso_session)"),
            ("sso_start_url", "a sign-in (sso_start_url)"),
            ("source_profile", "a role (source_profile)"),
        ];
        ways.into_iter().find(|(key, _)| self.values.contains_key(*key)).map(|(_, how)| how)
    }
}

fn sections(path: Option<&Path>) -> Result<BTreeMap<String, Section>> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let cannot = || format!("cannot read {}", path.display());
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        found => found.context(cannot)?,
    };
    if found.len() > FILE_LEN_MAX {
        return Err(Error::invalid(format!("{} is too long for a list of profiles", path.display())));
    }
    let text = std::fs::read_to_string(path).context(cannot)?;
    parse(&text)
        .map_err(|line| Error::invalid(format!("{}, line {line}: neither a section nor a setting", path.display())))
}

/// The sections of a file. Indented settings belong to the setting above them: `s3 =` and `  endpoint_url = x` become
/// `s3.endpoint_url`. An error is the number of the line.
fn parse(text: &str) -> std::result::Result<BTreeMap<String, Section>, usize> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let (mut current, mut above) = (None::<String>, None::<String>);
    for (number, line) in (1_usize..).zip(text.lines()) {
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            (current, above) = (Some(name), None);
            continue;
        }
        let (key, value) = content.split_once('=').ok_or(number)?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        // After a space only: secrets may contain the character.
        let value = value.split(" #").next().unwrap_or_default().trim_end();
        let section = current.as_ref().and_then(|name| sections.get_mut(name)).ok_or(number)?;
        match (line.starts_with([' ', '\t']), &above) {
            (true, Some(above)) => drop(section.insert(format!("{above}.{key}"), value.to_owned())),
            _ if value.is_empty() => above = Some(key),
            _ => {
                above = None;
                section.insert(key, value.to_owned());
            }
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
# comment
[default]
region = eu-west-1

[profile  ceph]
region=us-east-1
services = own
aws_access_key_id = in-config

[services own]
s3 =
  endpoint_url = http://127.0.0.1:7480 # on premises
";
    const CREDENTIALS: &str = "\
[default]
aws_access_key_id = AAA
aws_secret_access_key = s#e/c=r+et
[ceph]
aws_access_key_id = BBB
aws_secret_access_key = bbb
aws_session_token = ttt
";

    fn read(environment: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/config"), CONFIG).unwrap();
        std::fs::write(folder.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        let mut settings: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Profile::read(&settings, Some(folder.path()))?.fill(&mut settings);
        Ok(settings)
    }

    fn value(settings: &[(String, String)], name: &str) -> Option<String> {
        settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_default_profile_fills_what_the_environment_leaves_open() {
        let settings = read(&[]).unwrap();
        assert_eq!(value(&settings, "aws_access_key_id").as_deref(), Some("AAA"));
        assert_eq!(value(&settings, "aws_secret_access_key").as_deref(), Some("s#e/c=r+et"));
        assert_eq!(value(&settings, "aws_region").as_deref(), Some("eu-west-1"));
        let settings = read(&[("aws_access_key_id", "env"), ("aws_default_region", "r")]).unwrap();
        assert_eq!(value(&settings, "aws_secret_access_key"), None, "half a key is not completed by another's");
        assert_eq!(value(&settings, "aws_region"), None);
    }

    #[test]
    fn a_named_profile_has_its_key_from_credentials_and_its_endpoint_from_its_services() {
        let settings = read(&[("aws_profile", "ceph")]).unwrap();
        assert_eq!(value(&settings, "aws_access_key_id").as_deref(), Some("BBB"));
        assert_eq!(value(&settings, "aws_session_token").as_deref(), Some("ttt"));
        assert_eq!(value(&settings, "aws_endpoint_url").as_deref(), Some("http://127.0.0.1:7480"));
        assert!(read(&[("aws_profile", "none")]).unwrap_err().to_string().contains("no profile \"none\""));
    }

    #[test]
    fn what_is_no_setting_is_named_by_its_line() {
        assert_eq!(parse("[a]\nb = c\nwhat\n"), Err(3));
        assert_eq!(parse("b = c\n"), Err(1));
    }
}
