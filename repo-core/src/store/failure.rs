//! What an object store's refusals mean.

use std::error::Error as StdError;

use crate::error::{Error, ErrorKind};
use crate::store::server::Refused;

/// What was asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// An object, or a part of one, or its length.
    Reading,
    /// What is there.
    Listing,
    /// A new object.
    Storing,
    /// Taking an object away.
    Deleting,
}

/// The crate's error for one of the store's. `what` is the object, or the place that was listed.
pub(super) fn failure(doing: Doing, what: &str, error: object_store::Error) -> Error {
    if let object_store::Error::Generic { source, .. } = &error
        && let Some(refused) = source.downcast_ref::<Refused>()
    {
        // Says all there is to say.
        return Error::new(refused.kind, refused.text.clone());
    }
    let cause = Cause::of(&error);
    let (kind, text) = match (doing, &cause) {
        // The code decides, not the status: both are 404.
        (_, Cause::NoBucket) => (ErrorKind::Unavailable, "no such bucket, or container".to_owned()),
        (_, Cause::WrongKey) => (
            ErrorKind::Io,
            "the object store refuses the credentials: the key is not known, or its secret is wrong".to_owned(),
        ),
        (_, Cause::WrongClock) => {
            (ErrorKind::Io, "the object store refuses the request: this machine's clock is wrong".to_owned())
        }
        (_, Cause::Forbidden) => (ErrorKind::Io, format!("the object store does not allow {} {what}", doing.noun())),
        (_, Cause::Missing) => (ErrorKind::NotFound, format!("{what} is missing")),
        (_, Cause::Unreachable) => {
            (ErrorKind::Unavailable, format!("cannot {} {what}: the object store cannot be reached", doing.verb()))
        }
        (_, Cause::Other) => (ErrorKind::Unavailable, format!("cannot {} {what}", doing.verb())),
    };
    match cause {
        // The text says all that there is; the store's own is a page of XML.
        Cause::NoBucket | Cause::WrongKey | Cause::WrongClock => Error::new(kind, text),
        _ => Error::with_source(kind, text, error),
    }
}

impl Doing {
    fn verb(self) -> &'static str {
        match self {
            Self::Reading => "read",
            Self::Listing => "list",
            Self::Storing => "store",
            Self::Deleting => "delete",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Listing => "listing",
            Self::Storing => "storing",
            Self::Deleting => "deleting",
        }
    }
}

/// Why the store refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Missing,
    NoBucket,
    WrongKey,
    WrongClock,
    Forbidden,
    Unreachable,
    Other,
}

impl Cause {
    fn of(error: &object_store::Error) -> Self {
        let told = chain(error);
        let says = |codes: &[&str]| codes.iter().any(|code| told.contains(code));
        if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
            return Self::NoBucket;
        }
        if says(&["RequestTimeTooSkewed", "RequestExpired"]) {
            return Self::WrongClock;
        }
        if says(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "NotSignedUp"]) {
            return Self::WrongKey;
        }
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            object_store::Error::PermissionDenied { .. } => Self::Forbidden,
            object_store::Error::Unauthenticated { .. } => Self::WrongKey,
            _ if says(&["error trying to connect", "tcp connect error", "dns error", "Connection refused"]) => {
                Self::Unreachable
            }
            _ => Self::Other,
        }
    }
}

fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found(body: &str) -> object_store::Error {
        object_store::Error::NotFound { path: "x".to_owned(), source: body.into() }
    }

    #[test]
    fn a_missing_bucket_is_no_missing_object() {
        let error = failure(Doing::Reading, "config", not_found("404: <Code>NoSuchKey</Code>"));
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "config is missing"));
        let error = failure(Doing::Reading, "config", not_found("404: <Code>NoSuchBucket</Code>"));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().starts_with("no such bucket"));
    }

    #[test]
    fn keys_clocks_and_rights_are_told_apart() {
        let denied = |body: &str| object_store::Error::PermissionDenied { path: "x".to_owned(), source: body.into() };
        let text = |body: &str| failure(Doing::Storing, "config", denied(body)).to_string();
        assert!(text("<Code>SignatureDoesNotMatch</Code>").contains("credentials"));
        assert!(text("<Code>RequestTimeTooSkewed</Code>").contains("clock"));
        assert_eq!(text("<Code>AccessDenied</Code>"), "the object store does not allow storing config");
    }
}
