"""The reference guest: the Android side of a session, for any Linux rootfs.

``python -m anbox_tw.guest`` is the init of a container: adbd over ``/dev/qemu_pipe`` and the peer of
``/dev/anbox_bridge``, in an Android-like tree.
"""
