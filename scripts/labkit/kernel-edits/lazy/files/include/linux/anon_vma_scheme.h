/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ANON_VMA_LAZY: a VMA gets an anon_vma when its pages may be shared, not when it has the first. Till
 * then vma->anon_vma is a VMA with the tag ANON_VMA_TREE_VMA: itself, or the one that it was split
 * off from, its root VMA, which is kept as long as a word leads to it. A fork gives the parent an
 * anon_vma; the child's word leads to that, with the tag ANON_VMA_TREE_PARENT and a reference, until
 * the child forks as well.
 */
#ifndef _LINUX_ANON_VMA_SCHEME_H
#define _LINUX_ANON_VMA_SCHEME_H

#if defined(CONFIG_KSM) || defined(CONFIG_TRANSPARENT_HUGEPAGE) || defined(CONFIG_SWAP) || \
	defined(CONFIG_USERFAULTFD) || defined(CONFIG_MIGRATION) || defined(CONFIG_HUGETLBFS) || \
	defined(CONFIG_MEMORY_FAILURE) || defined(CONFIG_SECURITY_SELINUX) || \
	defined(CONFIG_PAGE_IDLE_FLAG) || defined(CONFIG_DAMON)
#error "what these walk the reverse map for finds nothing for folios of lazy VMAs"
#endif

enum anon_vma_tree_type {
	ANON_VMA_TREE_REGULAR,
	ANON_VMA_TREE_VMA,
	ANON_VMA_TREE_PARENT,
};

#define ANON_VMA_TAG_1_NAME "vma"
#define ANON_VMA_TAG_2_NAME "parent"

#define ANON_VMA_SCHEME_EVENTS(X)	\
	X(LINK_ROOT, "link-root")	\
	X(LINK_PARENT, "link-parent")	\
	X(UPGRADE, "upgrade")		\
	X(UPGRADE_SHARED, "upgrade-shared")

/* Set by the file "anon_vma_lazy" in debugfs, and by anon_vma_lazy= on the command line. */
extern bool anon_vma_lazy_enabled;

static inline enum anon_vma_tree_type anon_tree_type(unsigned long word)
{
	return word & ANON_VMA_TAG_MASK;
}

static inline bool anon_word_legal(unsigned long word)
{
	return !(word & ANON_VMA_TAG_MASK) ||
	       (anon_tree_type(word) <= ANON_VMA_TREE_PARENT && word > ANON_VMA_TAG_MASK);
}

static inline unsigned long anon_word_faulted(unsigned long word)
{
	return word;
}

/* A root VMA is in no tree; who shares the parent's anon_vma is in that one's. */
static inline struct anon_vma *anon_word_tree(unsigned long word)
{
	if (anon_tree_type(word) == ANON_VMA_TREE_VMA)
		return NULL;
	return (struct anon_vma *)(word & ~ANON_VMA_TAG_MASK);
}

static inline struct vm_area_struct *anon_word_root(unsigned long word)
{
	if (anon_tree_type(word) != ANON_VMA_TREE_VMA)
		return NULL;
	return (struct vm_area_struct *)(word & ~ANON_VMA_TAG_MASK);
}

void vma_root_get(struct vm_area_struct *vma);
void vma_root_put(struct vm_area_struct *vma);
bool anon_vma_may_share(struct vm_area_struct *theirs, struct vm_area_struct *vma,
			struct anon_vma *anon_vma);

#endif
