"""pytest-django."""

from __future__ import annotations

from runs import IN_EVERY_WAY, Suite, requires

pytestmark = requires("pytest-django", "pytest-asyncio")

SETTINGS = """
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
ROOT_URLCONF = "urls"
SECRET_KEY = "none"
STATIC_URL = "static/"
"""
URLS = """
import os
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

def network():
    return os.stat("/proc/thread-self/ns/net").st_ino

def users(request):
    return HttpResponse(",".join(User.objects.values_list("username", flat=True)))

async def networks(request):
    either = [await sync_to_async(network, thread_sensitive=sensitive)() for sensitive in (True, False)]
    return HttpResponse("{} {}".format(*either))

urlpatterns = [path("users", users), path("networks", networks)]
"""
SUITE = """
import urllib.request
import pytest
from django.contrib.auth.models import User
from urls import network

@pytest.mark.parametrize("number", range(3))
def test_live_server(live_server, transactional_db, number):
    assert not User.objects.exists()
    User.objects.create(username=f"user-{number}")
    for host in "localhost", "127.0.0.1":
        with urllib.request.urlopen(f"http://{host}:{live_server.thread.port}/users", timeout=5) as answer:
            assert answer.read().decode() == f"user-{number}"

@pytest.mark.parametrize("number", range(2))
def test_client(client, db, django_assert_num_queries, number):
    User.objects.create(username=f"user-{number}")
    with django_assert_num_queries(1):
        assert client.get("/users").content.decode() == f"user-{number}"

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(3))
async def test_asynchronous(async_client, number):
    answer = await async_client.get("/networks")
    assert {int(each) for each in answer.content.split()} == {network()}
"""


@IN_EVERY_WAY
def test_django(suite: Suite, way: tuple[str, ...]) -> None:
    """The live server is reached from every test, sees its data, and views work in the test's network."""
    suite.write(settings=SETTINGS, urls=URLS, test_django=SUITE)
    options = ("--ds=settings", "-o", "asyncio_default_fixture_loop_scope=function")
    suite.passes(*way, *options, plugins="django asyncio", passed=8)
