/*
** Changes of the membership, as the leader makes them (paper section 6, thesis chapter 4).
**
** Any change of the set of voters goes through a joint configuration, so that no two majorities that could decide
** without each other are in force at a time, however many members change. The next change has to wait until the last
** one is settled and committed, and until something of this term is: before that this leader does not know what the
** leaders before it have left half done (Ongaro, raft-dev, July 2015).
**
** What follows on a committed configuration is written in it, so a leader only looks at what is in force: it does not
** matter who began a change.
*/
#include <assert.h>
#include <string.h>

#include "core.h"

#define ROLES_VOTER (RAFT_VOTER_NEW | RAFT_VOTER_OLD)

/* ---- What it will be ---- */

static struct raft_member *find(struct raft_configuration *configuration, uint64_t id) {
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    if (configuration->members[i].id == id) {
      return &configuration->members[i];
    }
  }
  return NULL;
}

/* In the order of ids; there is none with this one. false: no room. */
static bool insert(struct raft_configuration *configuration, const struct raft_member *member) {
  uint32_t at = configuration->n_members;
  if (at == RAFT_MEMBERS_MAX) {
    return false;
  }
  for (; at > 0 && configuration->members[at - 1].id > member->id; at--) {
    configuration->members[at] = configuration->members[at - 1];
  }
  configuration->members[at] = *member;
  configuration->n_members++;
  return true;
}

static void drop(struct raft_configuration *configuration, const struct raft_member *member) {
  const size_t at = (size_t)(member - configuration->members);
  configuration->n_members--;
  memmove(&configuration->members[at], &configuration->members[at + 1],
          (configuration->n_members - at) * sizeof configuration->members[0]);
}

/* Two at one address cannot both be reached. A cluster of one may have none. */
static bool addresses_differ(const struct raft_configuration *configuration) {
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const char *address = configuration->members[i].address;
    for (uint32_t j = 0; j < i && address[0]; j++) {
      if (strcmp(address, configuration->members[j].address) == 0) {
        return false;
      }
    }
  }
  return true;
}

static int add(struct raft_configuration *configuration, const struct raft_change *change) {
  struct raft_member member = {.id = change->id, .incarnation = change->incarnation, .roles = RAFT_LEARNER};
  member.roles |= change->joining ? RAFT_JOINING : 0;
  memcpy(member.address, change->address, sizeof member.address);
  return insert(configuration, &member) ? RAFT_OK : RAFT_INVALID;
}

static bool has_caught_up(const struct raft *raft, uint64_t id) {
  const int place = raft_member_place(raft, id);
  return place >= 0 && raft->progress[place].caught_up && raft_is_in_contact(raft, (uint32_t)place);
}

static int promote(const struct raft *raft, struct raft_member *member) {
  if (raft_is_voter(member)) {
    return RAFT_INVALID;
  }
  if (!has_caught_up(raft, member->id)) {
    return RAFT_BEHIND;
  }
  member->roles = RAFT_VOTER_NEW;
  return RAFT_OK;
}

static int apply_change(const struct raft *raft, struct raft_configuration *configuration,
                        const struct raft_change *change) {
  struct raft_member *member = find(configuration, change->id);
  if ((change->type == RAFT_CHANGE_ADD) == (member != NULL)) {
    return RAFT_INVALID;
  }
  switch (change->type) {
  case RAFT_CHANGE_ADD: return add(configuration, change);
  case RAFT_CHANGE_PROMOTE: return promote(raft, member);
  case RAFT_CHANGE_DEMOTE:
    if (!raft_is_voter(member)) {
      return RAFT_INVALID;
    }
    member->roles = RAFT_LEARNER;
    return RAFT_OK;
  case RAFT_CHANGE_REMOVE: drop(configuration, member); return RAFT_OK;
  case RAFT_CHANGE_ADDRESS:
    if (!raft_same_incarnation(&member->incarnation, &change->incarnation)) {
      return RAFT_INVALID;
    }
    memcpy(member->address, change->address, sizeof member->address);
    return RAFT_OK;
  default: return RAFT_INVALID;
  }
}

static bool changes_make_sense(const struct raft_change *changes, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (!memchr(changes[i].address, 0, RAFT_ADDRESS_MAX)) {
      return false;
    }
    for (size_t j = 0; j < i; j++) {
      if (changes[i].id == changes[j].id) {
        return false;
      }
    }
  }
  return n > 0 && n <= (size_t)2 * RAFT_MEMBERS_MAX;
}

/* ---- The joint configuration ---- */

static bool same_voters(const struct raft_configuration *a, const struct raft_configuration *b) {
  for (uint32_t i = 0; i < a->n_members; i++) {
    const struct raft_member *there = raft_configuration_find(b, a->members[i].id);
    if (raft_is_voter(&a->members[i]) && !(there && raft_is_voter(there))) {
      return false;
    }
  }
  return true;
}

/* Makes *next, settled, the joint one of `now` and itself. false: too many members. */
static bool join(struct raft_configuration *next, const struct raft_configuration *now) {
  for (uint32_t i = 0; i < now->n_members; i++) {
    struct raft_member leaving = now->members[i];
    if (!raft_is_voter(&leaving)) {
      continue;
    }
    struct raft_member *there = find(next, leaving.id);
    if (there) {
      there->roles |= RAFT_VOTER_OLD;
      continue;
    }
    leaving.roles = RAFT_VOTER_OLD;
    if (!insert(next, &leaving)) {
      return false;
    }
  }
  return true;
}

/* What follows on a joint one. */
static void settle(struct raft_configuration *configuration) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    configuration->members[n] = configuration->members[i];
    configuration->members[n].roles &= (uint8_t)~RAFT_VOTER_OLD;
    n += configuration->members[n].roles != 0;
  }
  memset(&configuration->members[n], 0, (configuration->n_members - n) * sizeof configuration->members[0]);
  configuration->n_members = n;
}

#ifdef RAFT_MUTANT_SINGLE_SERVER_CHANGE_WITHOUT_OWN_TERM
static bool differ_by_one(const struct raft_configuration *a, const struct raft_configuration *b) {
  int n = 0;
  for (uint32_t i = 0; i < a->n_members; i++) {
    n += raft_is_voter(&a->members[i]);
  }
  for (uint32_t i = 0; i < b->n_members; i++) {
    n -= raft_is_voter(&b->members[i]);
  }
  return (n == 1 && same_voters(b, a)) || (n == -1 && same_voters(a, b));
}
#endif

/* From the settled configuration `now` to *next, which is settled too; *next becomes what is to be appended. */
static int prepare(struct raft_configuration *next, const struct raft_configuration *now) {
  const bool same = same_voters(next, now) && same_voters(now, next);
#ifdef RAFT_MUTANT_SINGLE_SERVER_CHANGE_WITHOUT_OWN_TERM
  if (differ_by_one(next, now)) {
    return raft_configuration_check(next);
  }
#endif
  if (!same && !join(next, now)) {
    return RAFT_INVALID;
  }
  return addresses_differ(next) ? raft_configuration_check(next) : RAFT_INVALID;
}

/* ---- Appending ---- */

/* The one before the latest. */
static const struct raft_configuration *configuration_before(const struct raft *raft) {
  const struct raft_membership *membership = &raft->membership;
  return membership->n > 1 ? &membership->stack[membership->n - 2].configuration : NULL;
}

static int append(struct raft *raft, const struct raft_configuration *configuration, uint64_t *index) {
  if (!raft_membership_has_room(raft)) {
    return RAFT_NO_MEMORY;
  }
  const struct raft_configuration *members = raft_members(raft);
  assert(raft->configuration_appended == 0);
  const int error = raft_append_own(raft, RAFT_ENTRY_CONFIGURATION, (uint32_t)raft_configuration_size(configuration),
                                    index);
  if (error) {
    return error;
  }
  /* Who is no member any more learns that from the entry, if it gets it: it is not known here from now on. */
  for (uint32_t i = 0; i < members->n_members; i++) {
    const struct raft_member *member = &members->members[i];
    if (member->id != raft->options.id && !raft_configuration_find(configuration, member->id)) {
      raft_send_last(raft, i);
    }
  }
  raft_membership_push(raft, *index, configuration);
  raft->configuration_appended = *index;
  raft->replicate = true;
  return RAFT_OK;
}

/* May another one be appended? The latest is settled and known to be committed, and so is something of this term. */
static bool is_settled(const struct raft *raft) {
  uint64_t index;
  const struct raft_configuration *latest = raft_latest_configuration(raft, &index);
  bool own_term = raft->commit_index >= raft->term_index;
#ifdef RAFT_MUTANT_SINGLE_SERVER_CHANGE_WITHOUT_OWN_TERM
  own_term = true;
#endif
  return own_term && !raft_is_joint(latest) && index <= raft->commit_index && raft->configuration_appended == 0 &&
         raft->hand_over.to == 0;
}

int raft_change_by(struct raft *raft, const struct raft_change *changes, size_t n, uint64_t *index) {
  if (raft->role != RAFT_LEADER || raft->noop) {
    return RAFT_NOT_LEADER;
  }
  if (!is_settled(raft)) {
    return RAFT_PENDING;
  }
  if (!changes_make_sense(changes, n)) {
    return RAFT_INVALID;
  }
  struct raft_configuration next = *raft_latest_configuration(raft, NULL);
  /* Those that leave make room for those that come. */
  for (int removing = 1; removing >= 0; removing--) {
    for (size_t i = 0; i < n; i++) {
      if ((changes[i].type == RAFT_CHANGE_REMOVE) != removing) {
        continue;
      }
      const int error = apply_change(raft, &next, &changes[i]);
      if (error) {
        return error;
      }
    }
  }
  const int error = prepare(&next, raft_latest_configuration(raft, NULL));
  return error ? error : append(raft, &next, index);
}

/* ---- What the leader does by itself ---- */

/* All JOINING learners that are ready, in one step. */
static void promote_joining(struct raft *raft) {
  struct raft_change changes[RAFT_MEMBERS_MAX];
  const struct raft_configuration *members = raft_members(raft);
  size_t n = 0;
  for (uint32_t i = 0; i < members->n_members; i++) {
    const struct raft_member *member = &members->members[i];
    if ((member->roles & RAFT_JOINING) && has_caught_up(raft, member->id)) {
      changes[n++] = (struct raft_change){.type = RAFT_CHANGE_PROMOTE, .id = member->id};
    }
  }
  uint64_t index;
  if (n > 0) {
    (void)raft_change_by(raft, changes, n, &index); /* what stands against it now may not at the next tick */
  }
}

/* Known to be committed: who has left may hear of that. */
static void say_farewell(struct raft *raft) {
  const struct raft_configuration *before = configuration_before(raft);
  for (uint32_t i = 0; before && i < before->n_members; i++) {
    const struct raft_member *member = &before->members[i];
    if (member->id != raft->options.id && !raft_configuration_find(raft_members(raft), member->id)) {
      raft_send_farewell(raft, member);
    }
  }
}

void raft_advance_membership(struct raft *raft) {
  uint64_t index;
  const struct raft_configuration *latest = raft_latest_configuration(raft, &index);
  if (raft->role != RAFT_LEADER || raft->noop || index > raft->commit_index || raft->commit_index < raft->term_index ||
      raft->configuration_appended != 0) {
    return;
  }
  if (raft->settled_index < index && !raft_is_joint(latest)) {
    raft->settled_index = index;
    say_farewell(raft);
  }
  if (raft->hand_over.to != 0) {
    return; /* the next leader does it: its log must not get behind now */
  }
  if (raft_is_joint(latest)) {
    struct raft_configuration next = *latest;
    settle(&next);
    (void)append(raft, &next, &index); /* without memory: at the next tick */
  } else if (!raft_votes_itself(raft)) {
    raft_hand_over_and_leave(raft);
  } else {
    promote_joining(raft);
  }
}
