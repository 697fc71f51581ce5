//! Errors as the reference answers them: one table of statuses and texts.

use super::Answer;
use crate::feature::entity_key::KeyError;
use crate::feature::resolve::PlanError;
use crate::text::{json, pyrepr};

/// Why an operation has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// One of Feast's own exceptions: a JSON document inside a JSON string.
    Feast {
        /// Status code.
        status: u16,
        /// Exception class.
        class: &'static str,
        /// Its text.
        message: String,
    },
    /// Python's `KeyError`, which prints as the `repr` of its text. Status 500.
    Key(String),
    /// Any other exception: its text. Status 500.
    Other(String),
    /// Too much to do: try again in a second. Status 503.
    Overloaded(&'static str),
    /// The server stops before it could do that. Status 503.
    Unavailable(String),
    /// Something this server does not do yet. Status 501.
    Unsupported(String),
}

impl ApiError {
    /// Status code of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Feast { status, .. } => *status,
            Self::Key(_) | Self::Other(_) => 500,
            Self::Overloaded(_) | Self::Unavailable(_) => 503,
            Self::Unsupported(_) => 501,
        }
    }

    /// Writes the whole answer.
    pub fn reply(&self, answer: &mut Answer) {
        let body = answer.json(self.status());
        match self {
            Self::Feast { class, message, .. } => {
                let mut inner = b"{\"module\": \"feast.errors\", \"class\": ".to_vec();
                json::write_str_ascii(&mut inner, class);
                inner.extend_from_slice(b", \"message\": ");
                json::write_str_ascii(&mut inner, message);
                inner.push(b'}');
                json::write_bytes(body, &inner);
            }
            Self::Key(text) => json::write_str(body, &pyrepr::repr(text)),
            Self::Other(text) | Self::Unsupported(text) | Self::Unavailable(text) => {
                json::write_str(body, text);
            }
            Self::Overloaded(text) => {
                json::write_str(body, text);
                answer.retry_after = Some(1);
            }
        }
    }

    /// The text for the log.
    pub fn log_text(&self) -> String {
        match self {
            Self::Feast { class, message, .. } => format!("{class}: {message}"),
            Self::Key(text) => format!("KeyError: {text}"),
            Self::Other(text) | Self::Unsupported(text) | Self::Unavailable(text) => text.clone(),
            Self::Overloaded(text) => (*text).to_owned(),
        }
    }

    /// From what planning found, for a request to `project`.
    pub fn from_plan(error: PlanError, project: &str) -> Self {
        let not_found = |class, message| Self::Feast { status: 404, class, message };
        match error {
            PlanError::ServiceNotFound(name) => not_found(
                "FeatureServiceNotFoundException",
                format!("Feature service {name} does not exist in project {project}"),
            ),
            PlanError::ViewNotFound(name) => not_found(
                "FeatureViewNotFoundException",
                format!("Feature view {name} does not exist in project {project}"),
            ),
            PlanError::EntityNotFound(name) => not_found(
                "EntityNotFoundException",
                format!("Entity {name} does not exist in project {project}"),
            ),
            PlanError::VersionNotFound { view, version } => not_found(
                "FeatureViewVersionNotFound",
                format!("Version v{version} of feature view {view} does not exist in project {project}"),
            ),
            PlanError::NoFeatures => Self::Other("No features specified for retrieval".to_owned()),
            PlanError::InvalidReference(reference) => Self::Other(format!(
                "Invalid feature reference '{reference}'. Expected format: '<feature_view>:<feature>' or \
                 '<feature_view>@<version>:<feature>'"
            )),
            PlanError::VersioningOff(reference) => Self::Other(format!(
                "Version-qualified ref '{reference}' not supported: online versioning is disabled. Set \
                 'enable_online_feature_view_versioning: true' under 'registry' in feature_store.yaml."
            )),
            PlanError::Disabled(name) => Self::Other(format!(
                "Feature view '{name}' is disabled and cannot serve features. Enable it with `feast \
                 feature-views enable {name}` or set enabled=True."
            )),
            PlanError::NotServing { view, state } => Self::Other(format!(
                "Feature view '{view}' is in state '{}' and cannot serve features. Only AVAILABLE_ONLINE \
                 feature views can serve.",
                state.name()
            )),
            PlanError::Collision { names, full_names } => Self::Feast {
                status: 500,
                class: "FeatureNameCollisionError",
                message: collision(&names.join(", "), full_names),
            },
            PlanError::FeatureNotFound { feature, projection } => {
                Self::Key(format!("Feature {feature} not found in projection {projection}"))
            }
            PlanError::ProjectionMismatch { view, feature } => Self::Other(format!(
                "The projection for {view} cannot be applied because it contains {feature} which the \
                 FeatureView doesn't have."
            )),
            PlanError::OnDemand(view) => Self::Unsupported(format!(
                "Feature view '{view}' is computed on demand, which this server does not support yet."
            )),
        }
    }
}

fn collision(names: &str, full_names: bool) -> String {
    let remedy = if full_names {
        "please ensure that the feature views or their own features have different names. If you're \
         intentionally joining the same feature view twice on different sets of entities, please rename one \
         of the feature views with '.with_name'."
    } else {
        "either use the full feature name by setting 'full_feature_names=True', or ensure that the features \
         in question have different names."
    };
    format!("Duplicate features named {names} found.\nTo resolve this collision, {remedy}")
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        Self::Other(error.message())
    }
}
