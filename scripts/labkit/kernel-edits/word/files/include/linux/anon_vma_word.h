/* SPDX-License-Identifier: GPL-2.0 */
/*
 * vma->anon_vma as a word: a struct anon_vma's address, or that with a tag in its low bits. What the
 * tags mean is the scheme's to say (linux/anon_vma_scheme.h). Every change goes through
 * vma_set_anon_word() or vma_cmpxchg_anon_word(), so that the census is right at any moment.
 */
#ifndef _LINUX_ANON_VMA_WORD_H
#define _LINUX_ANON_VMA_WORD_H

#include <linux/mm_types.h>

struct anon_vma;

/*
 * What a word can say: nothing, an anon_vma, the tag 1, the tag 2. And of what is no mapping any
 * longer: that it is still referred to, and that there is no VMA.
 */
enum anon_vma_state {
	ANON_VMA_STATE_NONE,
	ANON_VMA_STATE_REGULAR,
	ANON_VMA_STATE_TAG_1,
	ANON_VMA_STATE_TAG_2,
	ANON_VMA_STATE_UNMAPPED,
	ANON_VMA_STATE_GONE,
	ANON_VMA_STATES,
};

#define ANON_VMA_TAG_MASK 3ul

#include <linux/anon_vma_scheme.h>

/* Why a word changes; the scheme has reasons of its own. */
#define ANON_VMA_EVENT_LIST(X)	\
	X(ALLOC, "alloc")	\
	X(COPY, "copy")		\
	X(FREE, "free")		\
	X(PREPARE, "prepare")	\
	X(MERGE, "merge")	\
	X(FORK, "fork")		\
	X(REUSE, "reuse")	\
	X(WIPE, "wipe")		\
	X(UNDO, "undo")		\
	X(UNLINK, "unlink")	\
	ANON_VMA_SCHEME_EVENTS(X)

#define ID(id, text) ANON_VMA_##id,
enum anon_vma_event { ANON_VMA_EVENT_LIST(ID) ANON_VMA_EVENTS };
#undef ID

static inline unsigned long anon_word_tag(unsigned long word)
{
	return word & ANON_VMA_TAG_MASK;
}

/* The anon_vma of a word without a tag; NULL under any tag. */
static inline struct anon_vma *anon_word_regular(unsigned long word)
{
	return anon_word_tag(word) ? NULL : (struct anon_vma *)word;
}

static inline struct anon_vma *vma_anon_vma(const struct vm_area_struct *vma)
{
	return anon_word_regular(READ_ONCE(vma->anon_vma));
}

/* The anon_vma whose root's lock guards the trees that the VMA is in; NULL if it is in none. */
static inline struct anon_vma *vma_tree_anon_vma(const struct vm_area_struct *vma)
{
	return anon_word_tree(READ_ONCE(vma->anon_vma));
}

/* Whether the VMA may have anonymous pages. */
static inline bool vma_is_faulted(const struct vm_area_struct *vma)
{
	return anon_word_faulted(READ_ONCE(vma->anon_vma)) != 0;
}

void anon_vma_moved(unsigned long from, unsigned long to, enum anon_vma_event event);
void anon_vma_born(unsigned long word, enum anon_vma_event event);
void anon_vma_gone(unsigned long word);
void anon_vma_unmapped(unsigned long word);
void anon_vma_forgotten(void);
unsigned long vma_set_anon_word(struct vm_area_struct *vma, unsigned long word,
				enum anon_vma_event event);
bool vma_cmpxchg_anon_word(struct vm_area_struct *vma, unsigned long from, unsigned long to,
			   enum anon_vma_event event);

static inline void vma_set_anon_vma(struct vm_area_struct *vma, struct anon_vma *anon_vma,
				    enum anon_vma_event event)
{
	vma_set_anon_word(vma, (unsigned long)anon_vma, event);
}

#endif
