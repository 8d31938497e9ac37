//! Where settings come from: the vendors' usual variables, and for S3 the profile files of the AWS tools. The caller hands in
//! both its variables and its home folder.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::store::cloud::profile::Profile;
use crate::store::cloud::{CloudKind, CloudPlace};

/// What a process knows of its surroundings.
#[derive(Clone, Default)]
pub struct Environment {
    /// All variables, as they are set.
    pub variables: Vec<(OsString, OsString)>,
    /// The home folder, below which profile files are looked for; without one there are none but those that variables name.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// The settings for a place, as [`CloudSettings`](super::CloudSettings) takes them. A `profile` that is named takes the place
    /// of keys, region and endpoint in the variables.
    ///
    /// # Errors
    /// `NotFound` when no file has the profile; `Invalid` when a file is malformed, or nothing says which credentials to use; `Io`.
    pub fn settings(&self, place: &CloudPlace, profile: Option<&str>) -> Result<Vec<(String, String)>> {
        let mut values = self.beginning_with(place.variable_prefix());
        if let Some(profile) = profile {
            only_profile(&mut values, profile);
        }
        if place.kind == CloudKind::S3 {
            let profile = Profile::read(&values, self.home.as_deref())?;
            profile.fill(&mut values);
            require_credentials(&values, &profile)?;
        }
        Ok(values)
    }

    /// The variables whose names begin so, their names in lowercase. Empty ones are not set.
    fn beginning_with(&self, prefix: &str) -> Vec<(String, String)> {
        let text = |(name, value): &(OsString, OsString)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()));
        let ours = self.variables.iter().filter_map(text);
        let ours = ours.filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
        ours.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
    }
}

/// Leaves keys, region and endpoint to a profile: those of the environment are of another place.
fn only_profile(values: &mut Vec<(String, String)>, profile: &str) {
    values.retain(|(name, _)| {
        matches!(name.as_str(), "aws_config_file" | "aws_shared_credentials_file" | "aws_ca_bundle")
    });
    values.push(("aws_profile".to_owned(), profile.to_owned()));
}

/// Fails where requests could only be refused, or would wait for a metadata service that is not there.
fn require_credentials(values: &[(String, String)], profile: &Profile) -> Result<()> {
    let has = |name: &str| values.iter().any(|(known, _)| known == name);
    let key = has("aws_access_key_id") && has("aws_secret_access_key");
    let elsewhere = has("aws_web_identity_token_file")
        || has("aws_container_credentials_relative_uri")
        || has("aws_container_credentials_full_uri")
        || has("aws_skip_signature")
        || profile.uses_instance_metadata();
    if key || elsewhere {
        return Ok(());
    }
    let text = match profile.unsupported() {
        Some(how) => format!(
            "there are no credentials for the object store: profile {} takes them from {how}, which is not supported",
            profile.name()
        ),
        None => "there are no credentials for the object store".to_owned(),
    };
    Err(Error::new(ErrorKind::Invalid, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Environment { variables: variables.collect(), home: None }
    }

    #[test]
    fn variables_become_settings_and_empty_ones_do_not() {
        let environment = environment(&[("AWS_REGION", "x"), ("AWS_TOKEN", ""), ("HOME", "/"), ("aws_region", "y")]);
        assert_eq!(environment.beginning_with("AWS_"), [("aws_region".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn without_credentials_it_ends_at_once() {
        let place = CloudPlace::parse("s3://bucket").unwrap().unwrap();
        let error = environment(&[("AWS_ACCESS_KEY_ID", "half")]).settings(&place, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("no credentials"), "{error}");
        let key = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
        assert_eq!(environment(&key).settings(&place, None).unwrap().len(), 2);
    }

    #[test]
    fn a_profile_that_is_named_leaves_nothing_of_the_environments_own_key_and_endpoint() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        std::fs::write(&file, "[near]\naws_access_key_id = AAA\naws_secret_access_key = s\n").unwrap();
        let variables = [
            ("AWS_ACCESS_KEY_ID", "of another"),
            ("AWS_ENDPOINT_URL", "http://elsewhere"),
            ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
        ];
        let place = CloudPlace::parse("s3://bucket").unwrap().unwrap();
        let values = environment(&variables).settings(&place, Some("near")).unwrap();
        let value = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("aws_access_key_id"), Some("AAA"));
        assert_eq!(value("aws_endpoint_url"), None);
    }
}
