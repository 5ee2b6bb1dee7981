"""The modem behind ``qemud:gsm``: AT commands, SIM files and the PDUs of short messages, with no I/O and no Twisted.

:mod:`anbox_tw.qemu.gsm` is the pipe service that joins it to the device model.
"""
