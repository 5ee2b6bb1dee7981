"""The reference guest: the Android-side peers, for any Linux rootfs."""
