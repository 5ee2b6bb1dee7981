"""The session on D-Bus: the original's ``org.anbox``, and the device beside it. Needs the extra ``[dbus]``."""
