"""Recipes of other people: remotes, their index, the cache, signatures, and what is checked before any of it is used.

A remote is plain files, so a folder in a git repository or on a static web server is enough:

    index.json                  names, versions, sizes and SHA-256 of the recipes
    recipes/SHA256.yaml         a recipe, by its content
    recipes/SHA256.yaml.sig     its signature (OpenSSH's format), if it is signed

Nothing that a remote says becomes a path, an option of a command or part of another file. Nothing here needs torch.
"""
