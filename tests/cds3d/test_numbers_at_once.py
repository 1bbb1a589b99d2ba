from commands.test_elsewhere import there, moved  # noqa
