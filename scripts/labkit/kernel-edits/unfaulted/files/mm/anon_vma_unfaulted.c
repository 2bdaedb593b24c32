// SPDX-License-Identifier: GPL-2.0
/* The flag ANON_VMA_UNFAULTED, where more than one file has to do with it. */
#include <linux/rmap.h>

bool vma_test_anon_flag(const struct vm_area_struct *vma, enum anon_vma_flags flag)
{
	return READ_ONCE(vma->anon_vma) == flag;
}

/*
 * dst takes over a range of src, and with it perhaps markers in page tables. What has an anon_vma
 * needs no flag.
 */
void vma_inherit_unfaulted(struct vm_area_struct *dst, const struct vm_area_struct *src)
{
	if (vma_test_anon_flag(src, ANON_VMA_UNFAULTED))
		vma_cmpxchg_anon_word(dst, 0, ANON_VMA_UNFAULTED, ANON_VMA_INHERIT);
}

/*
 * A clone that failed took the word away, and the flag that may have been there before. Too many
 * flags cost a fork time, one too few costs it the markers.
 */
void vma_restore_unfaulted(struct vm_area_struct *vma)
{
	vma_cmpxchg_anon_word(vma, 0, ANON_VMA_UNFAULTED, ANON_VMA_RESTORE);
}
