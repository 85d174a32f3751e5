"""`dmq recipe`: find, write, check, share and trust recipes. One file a sub-command."""

from __future__ import annotations

import typer

from dmq_fx.cli.recipe.check import check_command
from dmq_fx.cli.recipe.fmt import fmt_command
from dmq_fx.cli.recipe.list import list_command
from dmq_fx.cli.recipe.lock import lock_command
from dmq_fx.cli.recipe.migrate import migrate_command
from dmq_fx.cli.recipe.new import new_command
from dmq_fx.cli.recipe.pull import pull_command
from dmq_fx.cli.recipe.push import push_command
from dmq_fx.cli.recipe.remote import remote_add, remote_list, remote_remove
from dmq_fx.cli.recipe.search import search_command
from dmq_fx.cli.recipe.show import show_command
from dmq_fx.cli.recipe.sign import sign_command
from dmq_fx.cli.recipe.verify import verify_command
from dmq_fx.cli.recipe.versions import versions_command
from dmq_fx.cli.support import guarded

app = typer.Typer(help="Find, write, check, share and trust recipes.", no_args_is_help=True, rich_markup_mode="rich")
for name, command in (
    ("list", list_command),
    ("search", search_command),
    ("show", show_command),
    ("versions", versions_command),
    ("new", new_command),
    ("fmt", fmt_command),
    ("check", check_command),
    ("pull", pull_command),
    ("push", push_command),
    ("lock", lock_command),
    ("verify", verify_command),
    ("sign", sign_command),
    ("migrate", migrate_command),
):
    app.command(name)(guarded(command))

remote_app = typer.Typer(help="The remotes that names are looked up in.", no_args_is_help=True)
for name, command in (("add", remote_add), ("list", remote_list), ("remove", remote_remove)):
    remote_app.command(name)(guarded(command))
app.add_typer(remote_app, name="remote")
