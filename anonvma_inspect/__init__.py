"""fsck for anon_vma: decode, walk and verify the Linux kernel's anonymous reverse map."""

__version__ = "0.1.0"
