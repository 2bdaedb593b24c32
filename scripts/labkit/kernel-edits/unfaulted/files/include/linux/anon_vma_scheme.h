/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ANON_VMA_UNFAULTED: vma->anon_vma can be a flag alone, which says that there are guard markers in
 * the page tables of a VMA that has no anonymous page. fork() then copies the page tables, and no
 * anon_vma is needed for that.
 */
#ifndef _LINUX_ANON_VMA_SCHEME_H
#define _LINUX_ANON_VMA_SCHEME_H

#if defined(CONFIG_KSM) || defined(CONFIG_TRANSPARENT_HUGEPAGE) || defined(CONFIG_SWAP) || \
	defined(CONFIG_USERFAULTFD) || defined(CONFIG_MIGRATION) || \
	defined(CONFIG_MEMORY_FAILURE) || defined(CONFIG_SECURITY_SELINUX)
#error "what these have to do with vma->anon_vma was not changed: it would take the flag for a pointer"
#endif

enum anon_vma_flags {
	ANON_VMA_UNFAULTED = 1,
};

#define ANON_VMA_TAG_1_NAME "unfaulted"
#define ANON_VMA_TAG_2_NAME NULL

#define ANON_VMA_SCHEME_EVENTS(X)	\
	X(INSTALL, "install")		\
	X(REMOVE, "remove")		\
	X(FORKED, "forked")		\
	X(INHERIT, "inherit")		\
	X(RESTORE, "restore")

/* The flag together with an address is never right. */
static inline bool anon_word_legal(unsigned long word)
{
	return !(word & ANON_VMA_TAG_MASK) || word == ANON_VMA_UNFAULTED;
}

/* The word as if there were no flag. */
static inline unsigned long anon_word_faulted(unsigned long word)
{
	return word == ANON_VMA_UNFAULTED ? 0 : word;
}

static inline struct anon_vma *anon_word_tree(unsigned long word)
{
	return (struct anon_vma *)anon_word_faulted(word);
}

bool vma_test_anon_flag(const struct vm_area_struct *vma, enum anon_vma_flags flag);
void vma_inherit_unfaulted(struct vm_area_struct *dst, const struct vm_area_struct *src);
void vma_restore_unfaulted(struct vm_area_struct *vma);

#endif
