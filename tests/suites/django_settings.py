"""Django's settings for its own tests, as its documentation asks for them: two databases, where libpq's variables say.

Read by the interpreter of Django's virtual environment, so it imports nothing of ours.
"""


def _database(name):
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name}


DATABASES = {"default": _database("django"), "other": _database("django_other")}
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "django_outcomes.Runner"
