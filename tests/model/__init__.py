"""A model of what the kernel does to anon_vmas, to be read beside the kernel's source.

It is a specification that runs: a few classes for the kernel's objects (:mod:`.objects`), a
function for each of its operations (:mod:`.rmap` for ``mm/rmap.c``, :mod:`.merge` and :mod:`.vma`
for ``mm/mmap.c`` and ``mm/vma.c``, :mod:`.mremap`, :mod:`.process` for fork and exit), and a table
of what differs from one era to another (:mod:`.eras`). :mod:`.script` has operations as a process
would ask for them, :mod:`.made_up` makes up whole scripts of them.

Only states at rest are modelled: one operation at a time, no locks, no pages. Whether a page is
there is never asked, since it decides nothing about anon_vmas: the first write to a private
mapping makes one, and nothing takes it away before the VMA goes.

:mod:`.image` lays a state out in memory as a real kernel would have it, by the layouts of that
kernel's BTF; :mod:`.picture` compares a state with tables, up to addresses.
"""
