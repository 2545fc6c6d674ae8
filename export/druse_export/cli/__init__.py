"""Commands that join the command line of Druse by the entry point group ``druse.commands``. One file a group.

These modules are imported for ``druse --help``: what is heavy is imported inside of the commands.
"""
