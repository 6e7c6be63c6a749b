"""All settings, from the environment, secure by default. docs/operators.md lists the variables."""

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from config import env
from config.environments import vllm_python

BASE_DIR = Path(__file__).resolve().parent.parent

try:
    DATA_DIR = Path(env.text("DATA", str(BASE_DIR / "var"))).expanduser().resolve()
    DEBUG = env.flag("DEBUG", False)
    ALLOWED_HOSTS = env.words("HOSTS", "localhost,127.0.0.1,[::1]")
    LOOPBACK = all(host in ("localhost", "127.0.0.1", "[::1]") for host in ALLOWED_HOSTS)
    HTTPS = env.flag("HTTPS", not LOOPBACK)
    BEHIND_PROXY = env.flag("BEHIND_PROXY", False)
    DATABASES = {"default": env.database("DATABASE_URL", DATA_DIR / "prefloop.sqlite3")}
    if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        # A file, not memory: tests start real processes that share it.
        DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}
    # The interpreters that run the programs: vLLM lives in an environment of its own.
    TRAINER_PYTHON = env.text("TRAINER_PYTHON", sys.executable)
    SAMPLER_PYTHON = env.text("SAMPLER_PYTHON", sys.executable)
    VLLM_PYTHON = env.text("VLLM_PYTHON", str(vllm_python()))
    # What writes responses: generation.choosing chooses where it is auto.
    SAMPLER = env.one_of("SAMPLER", "auto", ("auto", "vllm", "server", "transformers"))
    # OpenAI-compatible servers. Their key stays in its file: only the sampler reads it.
    SERVER_URLS = env.web_addresses("SERVER_URLS")
    SERVER_KEY_FILE = env.secret_file("SERVER_KEY")
    env.check_key_is_hidden("SERVER_URLS", SERVER_URLS, SERVER_KEY_FILE)
    # Whether servers may be used that cannot tell token ids and log-probabilities.
    SERVER_UNPROVEN = env.flag("SERVER_UNPROVEN", False)
    # Folders a manager may name a model from, besides DATA_DIR/models.
    MODEL_ROOTS = [Path(root).resolve() for root in env.words("MODEL_ROOTS")]
    # Whether managers may also name models of the hub, which the worker then fetches.
    HUB = env.flag("HUB", False)
    # The model that the demo starts from instead of the starter policy: a folder or a hub id.
    MODEL = env.text("MODEL")
    # What run directories and models may take before older checkpoints go; 0 is no limit.
    DISK_LIMIT_GB = env.number("DISK_LIMIT_GB", 0)
    # A worker that has not renewed a job's lease for so long has lost it.
    JOB_LEASE_SECONDS = env.number("JOB_LEASE_SECONDS", 30, minimum=1)
    # Where people reach the site: links in messages begin with it.
    SITE_URL = env.web_address("SITE_URL")
    # Whether messages may go to addresses of the operator's own networks, and this machine's.
    WEBHOOKS_PRIVATE = env.flag("WEBHOOKS_PRIVATE", False)
    MAIL_SERVER = env.mail_server("EMAIL_URL")
    DEFAULT_FROM_EMAIL = env.text("EMAIL_FROM")
    if MAIL_SERVER["EMAIL_HOST"] and not DEFAULT_FROM_EMAIL:
        raise env.SettingError("PREFLOOP_EMAIL_URL needs PREFLOOP_EMAIL_FROM, the sender's address")
    SECRET_KEY_GIVEN = env.text("SECRET_KEY")
except env.SettingError as error:
    raise ImproperlyConfigured(str(error)) from None


def _private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _secret_key(path: Path) -> str:
    """The installation's own key, made once and whole: of two starts, both read the same one."""
    if not path.exists():
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(64))
        with suppress(FileExistsError):
            os.link(beside, path)
        beside.unlink()
    return path.read_text().strip()


_private_folder(DATA_DIR)
RUNS_DIR = DATA_DIR / "runs"
MODELS_DIR = DATA_DIR / "models"
SECRET_KEY = SECRET_KEY_GIVEN or _secret_key(DATA_DIR / "secret_key")

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "axes",
    "csp",
    "rest_framework",
    "jobs",
    "labeling",
    "generation",
    "training",
    "config",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "config.middleware.LanguageMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.middleware.ResponseHeadersMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": False,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "builtins": ["labeling.templatetags.prefloop"],
            "libraries": {"prefloop": "labeling.templatetags.prefloop"},
        },
    }
]

AUTH_USER_MODEL = "labeling.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
PASSWORD_HASHERS = ["config.hashers.Argon2Hasher"]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# Five wrong passwords lock this name from this address for a quarter of an hour.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_TEMPLATE = "registration/locked.html"
AXES_VERBOSE = False
# Masked in its records: where somebody goes on to after signing in may be an invitation.
AXES_SENSITIVE_PARAMETERS = ["username", "ip_address", "next"]

SESSION_COOKIE_AGE = 12 * 60 * 60
SESSION_COOKIE_NAME = "__Host-sid" if HTTPS else "sid"
SESSION_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
CSRF_COOKIE_SECURE = HTTPS
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "config.views.csrf_failure"
CSRF_TRUSTED_ORIGINS = env.words("TRUSTED_ORIGINS")
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [NONCE],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "object-src": [NONE],
        "frame-ancestors": [NONE],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 2_621_440  # bytes
DATA_UPLOAD_MAX_NUMBER_FIELDS = 200
DATA_UPLOAD_MAX_NUMBER_FILES = 1

EMAIL_HOST, EMAIL_PORT = MAIL_SERVER["EMAIL_HOST"], MAIL_SERVER["EMAIL_PORT"]
EMAIL_HOST_USER = MAIL_SERVER["EMAIL_HOST_USER"]
EMAIL_HOST_PASSWORD = MAIL_SERVER["EMAIL_HOST_PASSWORD"]
EMAIL_USE_TLS, EMAIL_USE_SSL = MAIL_SERVER["EMAIL_USE_TLS"], MAIL_SERVER["EMAIL_USE_SSL"]
EMAIL_TIMEOUT = 10  # seconds

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}

LANGUAGE_CODE = "en"
# Each in its own tongue, whatever the page's: who needs one can read its name.
LANGUAGES = [("en", "English"), ("es", "Español"), ("zh-hans", "简体中文")]
LOCALE_PATHS = [BASE_DIR / "locale"]
LANGUAGE_COOKIE_NAME = "__Host-language" if HTTPS else "language"
LANGUAGE_COOKIE_AGE = 365 * 24 * 60 * 60
LANGUAGE_COOKIE_SECURE = HTTPS
LANGUAGE_COOKIE_HTTPONLY = True
TIME_ZONE = env.text("TIME_ZONE", "UTC")
USE_I18N = True
USE_TZ = True
USE_THOUSAND_SEPARATOR = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Served from the checkout with their own names: no build step, and no collectstatic to forget.
# An installation behind a real web server sets PREFLOOP_HASHED_STATIC and runs collectstatic.
HASHED_STATIC = env.flag("HASHED_STATIC", False)
WHITENOISE_USE_FINDERS = not HASHED_STATIC
_private_folder(STATIC_ROOT)
WHITENOISE_AUTOREFRESH = False
WHITENOISE_MAX_AGE = 60
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": (
            "whitenoise.storage.CompressedManifestStaticFilesStorage"
            if HASHED_STATIC
            else "django.contrib.staticfiles.storage.StaticFilesStorage"
        )
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "class": "config.logs.LineFormatter",
            "format": "{asctime} {levelname} {name}: {message}",
            "style": "{",
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.text("LOG_LEVEL", "WARNING")},
}
